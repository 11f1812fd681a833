from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from histotl.core.errors import UnknownNameError, UsageError
from histotl.learn.config import PredictConfig, TrainConfig, check_plugins


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"learning_rates": (float("nan"),)}, {"learning_rates": (float("inf"),)}, {"alpha": 0.0}]
)
def test_values_that_would_fail_later_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        TrainConfig(**wrong)  # type: ignore[arg-type]


def test_lists_single_texts_and_none() -> None:
    config = TrainConfig(ood=["knn"], fractions=[0.5, 0.3, 0.2], learning_rates=[0.1])  # type: ignore[arg-type]
    assert (config.ood, config.fractions, config.learning_rates) == (("knn",), (0.5, 0.3, 0.2), (0.1,))
    assert TrainConfig(ood=("none",)).ood == TrainConfig(ood="none").ood == ()  # type: ignore[arg-type]
    chosen = PredictConfig(table=Path("t.csv"), splits="Test")  # type: ignore[arg-type]
    assert (chosen.table, chosen.splits) == ("t.csv", ("test",))
    with pytest.raises(UsageError, match="DataFrame"):
        PredictConfig(table=pd.DataFrame())  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"aggregator": "abmli"}, {"ood": ("knnn",)}, {"balancing": "equall"}])
def test_wrong_component_names_are_told_before_anything_is_read(wrong: dict[str, object]) -> None:
    with pytest.raises(UnknownNameError, match="is called"):
        check_plugins(TrainConfig(**wrong))  # type: ignore[arg-type]
