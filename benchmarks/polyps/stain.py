"""Does stain normalisation help, do augmented views? Six classes of EBHI, each variant paired with doing nothing.

    python -m benchmarks.polyps.stain --ebhi EBHI_FOLDER --weights WEIGHTS_FOLDER --out OUT

Two backbones x five ways of normalising x heads trained with and without eight views (flips, turns, stain jitter).
Every patch is normalised by itself, as the set does not say which patches share a slide; one whose stain cannot be
estimated stays as it is. Heads see train and val only; test is evaluated once a row. Differences are of the same
resampled patients.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import histotl
from benchmarks.polyps.__main__ import CLASSES, PATCH_TASKS, backbones
from histotl.core.intervals import Resamples, estimate
from histotl.evaluate import metrics
from histotl.learn.config import PredictConfig
from histotl.learn.predictions import read_predictions

STAINS = {
    "none": "none",
    "macenko": "macenko(fallback='skip')",
    "vahadane": "vahadane(fallback='skip')",
    "reinhard": "reinhard(fallback='skip')",
    "macenko, cohort target": "macenko(target='cohort', fallback='skip')",
}
BACKBONES = ("mobilenetv1", "scattering")
VIEWS, AUGMENT = 8, "d4 + hed_jitter"
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table.

    Args:
        backbone: Name of the features.
        stain: Key of :data:`STAINS`.
        views: Whether heads were trained on views.
    """

    backbone: str
    stain: str
    views: bool

    @property
    def folder(self) -> str:
        """Name for its files."""
        return f"{self.backbone}-{self.stain.replace(', ', '-').replace(' ', '-')}{'-views' if self.views else ''}"


def embed(table: Path, weights: Path, out: Path) -> None:
    """Features of all ways of normalising, plain and eight views each, from one call a way."""
    specs = backbones(weights)
    for name, stain in STAINS.items():
        config = histotl.EmbedConfig(
            backbone=tuple(specs[b] for b in BACKBONES), stain=stain, views=VIEWS, augment=AUGMENT, quality="none"
        )
        summary = histotl.embed_patches(table, features_of(out, name), config=config)
        if summary.failed:
            raise SystemExit(f"{name}: {summary.failed[0].sentence}")
        print(f"{name}: {summary.seconds:.0f} s", flush=True)


def features_of(out: Path, stain: str) -> Path:
    """Where the features of a way of normalising are."""
    return out / "features" / stain.replace(", ", "-").replace(" ", "-")


def predicted(variant: Variant, table: Path, out: Path) -> pd.Series:
    """Predicted class of every test patch, by path; trained on train, calibrated on val."""
    features = features_of(out, variant.stain) / f"features_{variant.backbone}"
    place = out / variant.folder
    config = histotl.TrainConfig(views=variant.views, compare_single=False)
    histotl.train(table, features, place / "model", tasks=PATCH_TASKS, config=config)
    histotl.predict(place / "model", features, place / "predictions", config=PredictConfig())
    frame = read_predictions(place / "predictions").frame
    return frame.set_index("path")["type"]


def study(table: Path, out: Path) -> list[dict[str, object]]:
    """All variants; each against no normalisation and no views of the same backbone."""
    test = pd.read_csv(table).query("split == 'test'")
    truth = test["label"].map(CLASSES.index).to_numpy()
    draws = Resamples.draw(pd.factorize(test["patient"])[0], RESAMPLES, 0)
    rows: list[dict[str, object]] = []
    for backbone in BACKBONES:
        scores: dict[Variant, np.ndarray] = {}
        for views in (False, True):
            for stain in STAINS:
                variant = Variant(backbone=backbone, stain=stain, views=views)
                answers = predicted(variant, table, out).loc[test["path"]].map(CLASSES.index).to_numpy()
                scores[variant] = metrics.balanced_accuracy(draws.confusion(truth, answers, len(CLASSES)))
                nothing = scores[Variant(backbone=backbone, stain="none", views=False)]
                row = {"backbone": backbone, "stain": stain, "views": VIEWS if views else 0}
                row["balanced_accuracy"] = estimate(scores[variant]).to_dict()
                row["difference"] = estimate(scores[variant] - nothing).to_dict()
                print(json.dumps(row), flush=True)
                rows.append(row)
    return rows


def markdown(rows: list[dict[str, object]]) -> str:
    """The table."""
    lines = [
        "| features | stain | views | six classes, balanced accuracy | against none, no views |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [_cell(row["balanced_accuracy"]), _cell(row["difference"], "+")]
        lines.append(f"| {row['backbone']} | {row['stain']} | {row['views'] or '–'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: object, sign: str = "") -> str:
    if not isinstance(value, dict):
        return ""
    return f"{value['value']:{sign}.3f} ({value['low']:{sign}.3f} to {value['high']:{sign}.3f})"


def main() -> None:
    """Embed, train, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("ebhi", "weights", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--features-only", action="store_true", help="embed, and leave the heads for later")
    given = parser.parse_args()
    table = given.ebhi / "manifest.csv"
    embed(table, given.weights, given.out)
    if given.features_only:
        return
    rows = study(table, given.out)
    (given.out / "stain.json").write_text(json.dumps(rows, indent=2) + "\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()
