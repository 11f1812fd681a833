"""Quality on real colorectal tissue: the joint model beside a plain probe, colour alone and random weights.

    python -m benchmarks.polyps --ebhi EBHI_FOLDER --weights WEIGHTS_FOLDER --out OUT [--slides slides.csv]

EBHI_FOLDER holds manifest.csv (path, label, patient, split, lesion_fraction); WEIGHTS_FOLDER the MobileNet files. With
--slides, slide-level models are trained on slides composed of the same patches. Heads see train and val only; test is
evaluated once per row of the table, with patient-bootstrap intervals.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import histotl
from histotl.core.intervals import Resamples, estimate
from histotl.evaluate import metrics, ranking
from histotl.learn.config import PredictConfig
from histotl.learn.task import Task
from histotl.store.embeddings import open_embeddings
from histotl.store.layout import find_features

CLASSES = ("normal", "polyp", "serrated", "lgin", "hgin", "adenoca")
BENIGN = ("normal", "polyp", "serrated")
PATCH_TASKS = (
    Task(name="type", kind="multiclass", column="label", classes=CLASSES),
    Task(
        name="dysplasia", kind="binary", column="label", classes=("no", "yes"),
        map={name: "no" if name in BENIGN else "yes" for name in CLASSES},
    ),
    Task(
        name="grade", kind="ordinal", column="label", classes=("none", "low", "high", "cancer"),
        map={"normal": "none", "polyp": "none", "serrated": None, "lgin": "low", "hgin": "high", "adenoca": "cancer"},
    ),
    Task(name="lesion_fraction", kind="regression"),
)  # fmt: skip
SLIDE_TASKS = (
    Task(name="worst", kind="multiclass", column="label", classes=CLASSES),
    Task(name="dysplasia", kind="ordinal", classes=("none", "low", "high")),
)
SHOWN = {"multiclass": "balanced_accuracy", "binary": "auroc", "ordinal": "quadratic_kappa", "regression": "mae"}
"""Kind of task -> the figure in the table; metrics.json in each evaluation folder has all."""

KERAS = "model_args={'pad_type': 'same', 'bn_eps': 1e-3}, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)"


def backbones(weights: Path) -> dict[str, str]:
    """Name in the table -> spec."""
    v1, v2 = weights / "mobilenetv1_100_keras_in1k_nopw13.pth", weights / "mobilenetv2_035_keras_in1k.pth"
    first = f"weights='{v1}', drop=('blocks.4.1',), {KERAS}"
    return {
        "mobilenetv1": f"timm/mobilenetv1_100({first}, name='mobilenetv1')",
        "mobilenetv2_035": f"timm/mobilenetv2_035(weights='{v2}', {KERAS}, name='mobilenetv2_035')",
        "scattering": "scattering",
        "color_stats": "color_stats",
        "random": "timm/mobilenetv2_035(weights='random', name='random')",
    }


def joint(table: Path, features: Path, out: Path, tasks: tuple[Task, ...], **config: object) -> dict[str, object]:
    """Train on train, calibrate on val, evaluate once on test."""
    result = histotl.train(
        table, features, out / "model", tasks=tasks, config=histotl.TrainConfig(compare_single=False, **config)
    )
    histotl.predict(out / "model", features, out / "predictions", config=PredictConfig())
    evidence = histotl.evaluate_predictions(out / "predictions", table, out / "evaluation").evidence
    found = {t.answers.name: t.metrics[SHOWN[t.answers.kind]].to_dict() for t in evidence.tasks}
    return {**found, "train_seconds": round(result.seconds, 1)}


def probe(table: pd.DataFrame, features: Path) -> dict[str, object]:
    """Plain logistic regressions on standardised features, of the six classes and of dysplasia.

    Each is fitted on train, with the strength and class weights that do best on val.
    """
    with open_embeddings(find_features(features)[0]) as file:
        x = file.read()
        order = pd.Index(file.items).get_indexer(table["path"])
    x = x[order].astype(np.float64)
    rows = {name: (table["split"] == name).to_numpy() for name in ("train", "val", "test")}
    draws = Resamples.draw(pd.factorize(table["patient"][rows["test"]])[0], 2000, 0)
    found: dict[str, object] = {}
    for task in PATCH_TASKS:
        if task.kind in ("multiclass", "binary"):
            label = task.targets(table[task.column]).astype(np.int64)
            best = tuned(x, label, rows, task.n_classes)
            value = estimate(score(best, x[rows["test"]], label[rows["test"]], draws, task.n_classes))
            found[task.name] = value.to_dict()
    return found


def tuned(
    x: npt.NDArray[np.float64], label: npt.NDArray[np.int64], rows: dict[str, npt.NDArray[np.bool_]], n_classes: int
) -> Pipeline:
    """The model fitted on train that does best on val."""

    def fitted() -> Iterator[Pipeline]:
        for weight in (None, "balanced"):
            for c in 10.0 ** np.arange(-4, 2.1):
                model = LogisticRegression(C=c, class_weight=weight, max_iter=3000)
                yield make_pipeline(StandardScaler(), model).fit(x[rows["train"]], label[rows["train"]])

    once = Resamples.draw(np.arange(rows["val"].sum()), 0, 0)
    return max(fitted(), key=lambda model: float(score(model, x[rows["val"]], label[rows["val"]], once, n_classes)[0]))


def score(
    model: Pipeline, x: npt.NDArray[np.float64], label: npt.NDArray[np.int64], draws: Resamples, n_classes: int
) -> npt.NDArray[np.float64]:
    """What the table shows on every draw: AUROC of two classes, balanced accuracy of more."""
    if n_classes == 2:
        risk = model.predict_proba(x)[:, 1]
        return draws.rows(lambda weights: ranking.auroc(risk, label == 1, weights))
    return metrics.balanced_accuracy(draws.confusion(label, model.predict(x), n_classes))


def main() -> None:
    """Run everything and write results.json and the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("ebhi", "weights", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--slides", type=Path)
    given = parser.parse_args()
    specs, table = backbones(given.weights), given.ebhi / "manifest.csv"
    rows: list[dict[str, object]] = []
    config = histotl.EmbedConfig(backbone=tuple(specs.values()))
    histotl.embed_patches(table, given.out / "patches", config=config)
    for name in specs:
        features = given.out / "patches" / f"features_{name}"
        rows.append({"set": "patches", "features": name, "heads": "joint, four tasks"}
                    | joint(table, features, given.out / "joint" / name, PATCH_TASKS))  # fmt: skip
        rows.append({"set": "patches", "features": name, "heads": "plain logistic probe"}
                    | probe(pd.read_csv(table), features))  # fmt: skip
    if given.slides:
        chosen = ("mobilenetv1", "scattering")
        config = histotl.EmbedConfig(backbone=tuple(specs[name] for name in chosen))
        histotl.embed_slides(given.slides, given.out / "slides", config=config)
        for name in chosen:
            features = next((given.out / "slides").glob(f"*/features_{name}"))
            for aggregator in ("mean", "abmil"):
                place = given.out / "slide" / f"{name}-{aggregator}"
                rows.append({"set": "slides", "features": name, "heads": aggregator}
                            | joint(given.slides, features, place, SLIDE_TASKS, aggregator=aggregator))  # fmt: skip
    (given.out / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    print(markdown(rows))


def markdown(rows: list[dict[str, object]]) -> str:
    """One table a set."""
    lines = []
    for kind, tasks in (("patches", PATCH_TASKS), ("slides", SLIDE_TASKS)):
        of_kind = [row for row in rows if row["set"] == kind]
        if of_kind:
            names = [f"{task.name}, {SHOWN[task.kind].replace('_', ' ')}" for task in tasks]
            lines += [f"| features | heads | {' | '.join(names)} | s |", "|---" * (len(names) + 3) + "|"]
        for row in of_kind:
            cells = [_cell(row.get(task.name)) for task in tasks]
            lines.append(
                f"| {row['features']} | {row['heads']} | {' | '.join(cells)} | {row.get('train_seconds', '')} |"
            )
        lines.append("")
    return "\n".join(lines)


def _cell(value: object) -> str:
    if not isinstance(value, dict):
        return "–"
    return f"{value['value']:.3f} ({value['low']:.3f}–{value['high']:.3f})"


if __name__ == "__main__":
    main()
