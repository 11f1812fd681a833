"""The embedded backbone on real colorectal patches: it tells dysplasia better than colour does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histotl.backbones._colour import COLOUR_DIM
from histotl.backbones.color_stats import ColorStats
from histotl.backbones.scattering import Scattering

CPU = torch.device("cpu")


def test_dysplasia_of_held_out_patients(real_data: Path) -> None:
    """Patient-grouped folds inside the val split, so that the test patients stay unseen."""
    table = pd.read_csv(real_data / "ebhi" / "manifest.csv").query("split == 'val'")
    tiles = torch.stack([_read(real_data / "ebhi" / path) for path in table["path"]])
    truth = table["label"].isin(["lgin", "hgin", "adenoca"]).to_numpy()
    embedder = Scattering().load(CPU)
    with torch.inference_mode():
        features = embedder(tiles)
        again = torch.cat([embedder(part) for part in torch.split(tiles[:50], 3)])
        plain = ColorStats().load(CPU)(tiles)
    assert torch.isfinite(features).all()
    assert torch.equal(again, features[:50])
    patients = table["patient"].to_numpy()
    ours = _auroc(features.numpy(), truth, patients)
    assert ours > 0.90, f"AUROC {ours:.3f}"
    assert _auroc(features[:, COLOUR_DIM:].numpy(), truth, patients) > 0.88
    assert ours > _auroc(plain.numpy(), truth, patients) + 0.02


def _auroc(features: np.ndarray, truth: np.ndarray, patients: np.ndarray) -> float:
    scores = np.zeros(len(truth))
    for train, held in GroupKFold(5).split(features, truth, patients):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.03, class_weight="balanced", max_iter=500))
        scores[held] = probe.fit(features[train], truth[train]).decision_function(features[held])
    return float(roc_auc_score(truth, scores))


def _read(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))
