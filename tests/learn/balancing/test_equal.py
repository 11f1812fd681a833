from __future__ import annotations

import pytest
import torch

from histotl.core.registry import available, create


def test_a_useless_task_counts_one() -> None:
    rule = create("balancing", "equal")
    losses = {"a": torch.tensor(1.2), "b": torch.tensor(0.03)}
    assert float(rule.total(losses, {"a": 1.2, "b": 0.03, "c": 5.0})) == pytest.approx(2.0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", available("balancing"))
def test_total_is_one_number_with_gradients_to_every_task(name: str) -> None:
    rule = create("balancing", name)
    losses = {key: torch.tensor(value, requires_grad=True) for key, value in (("a", 1.0), ("b", 2.0))}
    total = rule.total(losses, {"a": 1.0, "b": 1.0})  # type: ignore[attr-defined]
    total.backward()
    assert total.shape == ()
    assert all(loss.grad is not None and float(loss.grad) > 0 for loss in losses.values())
