"""Do tasks help each other, and which aggregator finds the worst lesion? EBHI patches, and slides composed of them.

    python -m benchmarks.polyps.heads --ebhi EBHI_FOLDER --features FOLDER --out OUT
    python -m benchmarks.polyps.heads --slides CSV --slide-features FOLDER --out OUT

The features are those that `python -m benchmarks.polyps` leaves in its OUT. Figures are added to OUT/heads.json.

Patches: every task alone, and the four together with each way of sharing and each balancing rule, all from the same
seeds. Slides: the worst lesion by every aggregator, beside the mean of the tiles and a logistic regression. Heads see
train and val only; test is evaluated once a row. A figure is the mean over seeds; its interval is over patients, and a
difference is of the same resampled patients and the same seeds. ``sd`` is the deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import histotl
from benchmarks.polyps.__main__ import PATCH_TASKS, SLIDE_TASKS
from histotl.core.intervals import Resamples, estimate
from histotl.core.registry import available
from histotl.evaluate import metrics, ranking
from histotl.learn.bags import BagStore
from histotl.learn.config import PredictConfig
from histotl.learn.predictions import read_predictions
from histotl.learn.task import Task

Floats = npt.NDArray[np.float64]
RESAMPLES = 2000
ALONE = "each task alone"
LESS_IS_BETTER = ("regression",)


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """Labels of the test rows.

    Args:
        ids: Names of the rows.
        targets: Task name -> (n,), NaN where missing.
        patients: Index of each row's patient (n,).
    """

    ids: tuple[str, ...]
    targets: Mapping[str, Floats]
    patients: npt.NDArray[np.int64]

    @classmethod
    def of(cls, table: pd.DataFrame, id_column: str, tasks: Sequence[Task]) -> TestSet:
        """Test rows of a table."""
        test = table.query("split == 'test'")
        return cls(
            ids=tuple(test[id_column].astype(str)),
            targets={task.name: task.targets(test[task.column]) for task in tasks},
            patients=pd.factorize(test["patient"])[0].astype(np.int64),
        )

    def score(self, task: Task, answers: pd.DataFrame) -> Floats:
        """The task's metric on every draw (1 + b,), larger being better.

        Args:
            task: Which.
            answers: Predictions of all rows, by name.
        """
        known = np.flatnonzero(~np.isnan(self.targets[task.name]))
        truth, rows = self.targets[task.name][known], answers.loc[[self.ids[i] for i in known]]
        draws = Resamples.draw(pd.factorize(self.patients[known])[0].astype(np.int64), RESAMPLES, 0)
        if task.kind == "regression":
            return -draws.mean(np.abs(rows[task.name].to_numpy(np.float64) - truth))
        if task.kind == "binary":
            risk = rows[f"{task.name}:{task.classes[1]}"].to_numpy(np.float64)
            return draws.rows(lambda w: ranking.auroc(risk, truth == 1, w))
        predicted = rows[task.name].map(task.classes.index).to_numpy(np.int64)
        confusion = draws.confusion(truth.astype(np.int64), predicted, task.n_classes)
        return metrics.quadratic_kappa(confusion) if task.kind == "ordinal" else metrics.balanced_accuracy(confusion)


def answered(
    table: Path, features: Path, out: Path, tasks: Sequence[Task], config: histotl.TrainConfig, id_column: str
) -> pd.DataFrame:
    """Train on train and val, predict test; by name of the row."""
    histotl.train(table, features, out / "model", tasks=tasks, config=config)
    choice = PredictConfig(table=str(table), splits=("test",), tile_scores=False)
    histotl.predict(out / "model", features, out / "predictions", config=choice)
    return read_predictions(out / "predictions").frame.set_index(id_column)


def patches(table: Path, features: Path, out: Path, seeds: int) -> list[dict[str, object]]:
    """Tasks alone and together."""
    test = TestSet.of(pd.read_csv(table), "path", PATCH_TASKS)
    shared = [{"sharing": name} for name in available("sharing")]
    balanced = [{"balancing": name} for name in available("balancing") if name not in ("equal", "static")]

    def scores(name: str, choice: Mapping[str, str], sets: Sequence[Sequence[Task]]) -> dict[str, list[Floats]]:
        found: dict[str, list[Floats]] = {task.name: [] for task in PATCH_TASKS}
        for seed in range(seeds):
            config = histotl.TrainConfig(members=1, seed=seed, ood=("none",), compare_single=False, **choice)
            for tasks in sets:
                place = out / name.replace(" ", "-") / f"{seed}-{tasks[0].name}"
                frame = answered(table, features, place, tasks, config, "path")
                for task in tasks:
                    found[task.name].append(test.score(task, frame))
        return found

    alone = scores(ALONE, {}, [(task,) for task in PATCH_TASKS])
    rows = [_row(ALONE, alone, alone, PATCH_TASKS)]
    for choice in (*shared, *balanced):
        name = ", ".join(f"{key} {value}" for key, value in choice.items())
        rows.append(_row(name, scores(name, choice, [PATCH_TASKS]), alone, PATCH_TASKS))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def slides(table: Path, features: Path, out: Path, seeds: int) -> list[dict[str, object]]:
    """The worst lesion of a slide by every aggregator."""
    frame = pd.read_csv(table)
    test = TestSet.of(frame, "slide_id", SLIDE_TASKS)
    plain = {task.name: [test.score(task, probe(frame, features, task))] for task in SLIDE_TASKS}
    rows = [_row("mean of tiles, logistic regression", plain, plain, SLIDE_TASKS)]
    for name in available("aggregator"):
        found: dict[str, list[Floats]] = {task.name: [] for task in SLIDE_TASKS}
        for seed in range(seeds):
            config = histotl.TrainConfig(
                aggregator=name,
                members=1,
                seed=seed,
                ood=("none",),
                learning_rates=(0.0003, 0.001),
                compare_single=False,
            )
            answers = answered(table, features, out / f"slide-{name}" / str(seed), SLIDE_TASKS, config, "slide_id")
            for task in SLIDE_TASKS:
                found[task.name].append(test.score(task, answers))
        rows.append(_row(name, found, plain, SLIDE_TASKS))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def probe(table: pd.DataFrame, features: Path, task: Task) -> pd.DataFrame:
    """Logistic regression on the mean of a slide's tiles: strength chosen on val, fitted on train."""
    store = BagStore.open(features)
    means = np.stack(
        [store.source.read(np.arange(a, b)).mean(0) for a, b in zip(store.starts, store.stops, strict=True)]
    )
    x = means[pd.Index(store.ids).get_indexer(table["slide_id"].astype(str))]
    target = task.targets(table[task.column])
    part = {name: ((table["split"] == name) & ~np.isnan(target)).to_numpy() for name in ("train", "val")}

    def fitted(c: float, weight: str | None) -> Callable[[Floats], npt.NDArray[np.float64]]:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, class_weight=weight, max_iter=3000))
        return model.fit(x[part["train"]], target[part["train"]]).predict  # type: ignore[no-any-return]

    def on_val(predict: Callable[[Floats], npt.NDArray[np.float64]]) -> float:
        truth, answer = target[part["val"]].astype(np.int64), predict(x[part["val"]]).astype(np.int64)
        return float(metrics.balanced_accuracy(metrics.confusion_matrix(truth, answer, task.n_classes)))

    models = [fitted(c, weight) for weight in (None, "balanced") for c in 10.0 ** np.arange(-4, 2.1)]
    best = max(models, key=on_val)
    names = [task.classes[int(index)] for index in best(x)]
    return pd.DataFrame({task.name: names}, index=table["slide_id"].astype(str))


def _row(
    name: str, found: Mapping[str, list[Floats]], alone: Mapping[str, list[Floats]], tasks: Sequence[Task]
) -> dict[str, object]:
    row: dict[str, object] = {"heads": name}
    for task in tasks:
        sign = -1 if task.kind in LESS_IS_BETTER else 1
        mean, base = (np.mean(values[task.name], axis=0) for values in (found, alone))
        row[task.name] = {
            **estimate(sign * mean).to_dict(),
            "seed_sd": float(np.std([draws[0] for draws in found[task.name]])),
            "difference": estimate(sign * (mean - base)).to_dict(),
        }
    return row


def markdown(rows: Sequence[Mapping[str, object]], tasks: Sequence[Task]) -> str:
    """A table: figure with its interval, and the difference from the first row with its own."""
    lines = [f"| heads | {' | '.join(task.name for task in tasks)} |", "|---" * (len(tasks) + 1) + "|"]
    lines += [f"| {row['heads']} | {' | '.join(_cell(row[task.name]) for task in tasks)} |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if not isinstance(value, dict):
        return ""
    d = value["difference"]
    text = f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
    return f"{text}; {d['value']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})"


def main() -> None:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    for name in ("ebhi", "features", "slides", "slide-features"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "heads.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    if given.ebhi:
        found["patches"] = patches(given.ebhi / "manifest.csv", given.features, given.out, given.seeds)
        print(markdown(found["patches"], PATCH_TASKS))
    if given.slides:
        found["slides"] = slides(given.slides, given.slide_features, given.out, given.seeds)
        print(markdown(found["slides"], SLIDE_TASKS))
    path.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
