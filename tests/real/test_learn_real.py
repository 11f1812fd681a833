"""The joint model on real colorectal patches: RGB statistics as features, real labels, real patients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from histotl.core.provenance import Provenance
from histotl.core.values import BackboneCard, FeatureIdentity
from histotl.learn.config import PredictConfig, TrainConfig
from histotl.learn.predict import predict
from histotl.learn.predictions import read_predictions
from histotl.learn.task import parse_task
from histotl.learn.train import train
from histotl.store.embeddings import EmbeddingsMeta, EmbeddingsWriter

DYSPLASIA = "{'lgin': 'yes', 'hgin': 'yes', 'adenoca': 'yes', '*': 'no'}"
GRADE = "{'normal': 'none', 'polyp': 'none', 'lgin': 'low', 'hgin': 'high', 'adenoca': 'cancer', 'serrated': None}"
TASKS = (
    parse_task("label: multiclass"),
    parse_task(f"dysplasia: binary(column='label', classes=('no', 'yes'), map={DYSPLASIA})"),
    parse_task(f"grade: ordinal(column='label', classes=('none', 'low', 'high', 'cancer'), map={GRADE})"),
    parse_task("lesion_fraction: regression"),
)


def statistics(path: Path) -> np.ndarray:
    """Mean, deviation and quantiles of each colour channel, and of its local contrast: 48 numbers."""
    image = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255
    parts = [
        image.mean((0, 1)),
        image.std((0, 1)),
        *np.quantile(image, (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98), (0, 1)),
    ]
    for step in (1, 2, 4, 8):
        parts.append(np.abs(np.diff(image[::step, ::step], axis=0)).mean((0, 1)))
        parts.append(np.abs(np.diff(image[::step, ::step], axis=1)).mean((0, 1)))
    return np.concatenate([*parts[:2], *parts[2:]])


@pytest.fixture(scope="module")
def ebhi(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    torch.set_num_threads(1)
    table = real_data / "ebhi" / "manifest.csv"
    names = pd.read_csv(table)["path"].tolist()
    x = np.stack([statistics(real_data / "ebhi" / name) for name in names])
    card = BackboneCard(
        name="statistics", dim=x.shape[1], pooling="none", input_px=224, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    identity = FeatureIdentity.of(card, None, stain="none", compute="fp32", dtype="fp32")
    meta = EmbeddingsMeta(identity=identity, card=card, provenance=Provenance.now(), items=tuple(names))
    path = tmp_path_factory.mktemp("ebhi") / "features_statistics" / "ebhi.h5"
    with EmbeddingsWriter(path, n=len(x), dim=x.shape[1], dtype="fp32", meta=meta) as writer:
        writer.put(np.arange(len(x)), x.astype(np.float32))
        writer.seal()
    return table, path


def test_four_tasks_trained_together_learn_from_colour_alone(
    ebhi: tuple[Path, Path], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    table, features = ebhi
    config = TrainConfig(members=1, learning_rates=(0.001,), device="cpu")
    result = train(table, features, tmp_path / "model", tasks=TASKS, config=config)
    assert result.cases == {"train": 1003, "val": 222, "test": 444}
    out = predict(result.folder, features, tmp_path / "out", config=PredictConfig(device="cpu"))
    frame = read_predictions(out).frame
    truth = pd.read_csv(table)
    test = truth["split"] == "test"
    found = balanced_accuracy_score(truth["label"][test], frame["label"][test])
    record_property("balanced_accuracy", found)
    # Chance is 0.17; colour mean and deviation with a linear probe reach 0.32 on these patients.
    assert found > 0.32
    assert frame["ood_flag"][truth["split"] == "val"].mean() <= 0.05


def test_worst_lesion_of_a_patient_with_attention(ebhi: tuple[Path, Path], tmp_path: Path) -> None:
    table, features = ebhi
    config = TrainConfig(
        bag="patient", aggregator="abmil(hidden=64, attention=32)", members=1, learning_rates=(0.001,), device="cpu"
    )
    result = train(table, features, tmp_path / "model", tasks=TASKS[1:3], config=config)
    assert result.cases == {"train": 117, "val": 61, "test": 81}
    assert result.validation["dysplasia"]["auroc"] > 0.6
