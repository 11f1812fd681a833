"""The predictions folder: ``predictions.csv``, ``predictions.json`` and ``tile_scores/``.

``predictions.csv`` has one row a slide (first column ``slide_id``), a patch (``path``), or a bag of them (the column
that gathered them). Classification tasks give ``<task>`` (the class) and ``<task>:<class>`` (probabilities that sum to
1; with ``:uncalibrated`` behind it the one before calibration) and ``<task>:set`` (classes that hold the true one as
often as training was asked for, joined by ``;``), ordinal ones also ``<task>:expected`` (mean grade, 0 = lowest).
Several labels give ``<task>`` (those of 0.5 or more, or of their thresholds, joined by ``;``) and ``<task>:<label>``
(also with ``:uncalibrated`` behind it), regression ``<task>`` with its spread in ``<task>:sd`` or ``<task>:q5`` and
the ends ``<task>:low`` and ``<task>:high`` of a conformal interval, survival ``<task>`` (the risk, higher is earlier)
and ``<task>:S(t)`` (no event until t). A task with a condition also has ``<task>:applies``, the probability that it
applies, and ``<task>:<class>:joint``, that times the class's own. ``ood_score``, ``ood_p``, ``ood_flag`` and
``ood_<statistic>`` are the gate's, ``failure_score`` is the entropy of the first classification task, ``model_split``
the part that the row had in training (empty for rows that the model never saw).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from histotl.core.atomic import atomic_path, write_text
from histotl.core.errors import TableError
from histotl.learn.columns import columns_of, is_text
from histotl.learn.decisions import SET
from histotl.learn.task import Task, task_from_dict

TABLE_NAME, META_NAME, TILE_FOLDER = "predictions.csv", "predictions.json", "tile_scores"
EXPLANATION_NAME, PATCH_NAME = "explanation.json", "patch_scores.csv"
"""What `histotl explain` adds to the folder; the second for bags of patches."""

SCHEMA = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Predictions as read from a folder.

    Args:
        frame: The rows; identifiers are text.
        tasks: What was predicted.
        meta: Content of ``predictions.json``.
        folder: Where it was read.
    """

    frame: pd.DataFrame
    tasks: tuple[Task, ...]
    meta: dict[str, object]
    folder: Path

    @property
    def id_column(self) -> str:
        """Name of the column that identifies a row."""
        return str(self.meta["id_column"])

    @property
    def members(self) -> dict[str, list[str]]:
        """Bag of slides -> its slides; empty where rows are slides or patches, or bags of these."""
        found = self.meta.get("members")
        return {str(bag): [*map(str, slides)] for bag, slides in found.items()} if isinstance(found, dict) else {}

    def tile_scores(self, slide_id: str) -> Path | None:
        """File with the scores of a slide's tiles, None when there is none."""
        path = self.folder / TILE_FOLDER / f"{slide_id}.h5"
        return path if path.is_file() else None


def clear_predictions(folder: Path) -> None:
    """Remove the table and the tile scores of an earlier run, which must not stand beside those of another model."""
    for name in (TABLE_NAME, EXPLANATION_NAME, PATCH_NAME):
        (folder / name).unlink(missing_ok=True)
    for old in (folder / TILE_FOLDER).glob("*.h5"):
        old.unlink()


def write_predictions(
    folder: Path, frame: pd.DataFrame, *, tasks: Sequence[Task], id_column: str, meta: Mapping[str, object]
) -> None:
    """Write the table and its description; the table last, so that a folder with a table is whole."""
    entries = {**meta, "schema": SCHEMA, "id_column": id_column, "tasks": [task.to_dict() for task in tasks]}
    write_text(folder / META_NAME, json.dumps(entries, indent=1, sort_keys=True) + "\n")
    with atomic_path(folder / TABLE_NAME) as path:
        # 9 digits give every float32 back exactly.
        frame.to_csv(path, index=False, float_format="%.9g")


def read_predictions(folder: Path | str) -> Predictions:
    """Read a predictions folder.

    Raises:
        TableError: It is no predictions folder, or its table lacks a column that its tasks promise, an identifier, or
            a number where one belongs.
    """
    folder = Path(folder)
    cure = "give the folder that `histotl predict` wrote"
    try:
        meta = json.loads((folder / META_NAME).read_text(encoding="utf-8"))
        id_column, entries = str(meta["id_column"]), list(meta["tasks"])
        tasks = tuple(task_from_dict(entry) for entry in entries)
        text = _text_columns(id_column, tasks) | {f"{task.name}{SET}": str for task in tasks}
        frame = pd.read_csv(folder / TABLE_NAME, dtype=text, keep_default_na=False, na_values=[""])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TableError(f"{folder} is no predictions folder: {error}", hint=cure) from error
    if not tasks:
        raise TableError(f"{folder / META_NAME} names no task", hint=cure)
    wanted = [id_column, *(column for task in tasks for column in columns_of(task))]
    missing = [column for column in wanted if column not in frame.columns]
    if missing:
        raise TableError(f"{folder / TABLE_NAME} lacks the column {missing[0]!r}", hint="predict again")
    if frame[id_column].isna().any():
        raise TableError(f"{folder / TABLE_NAME}: a row has no {id_column}", hint="predict again")
    _refuse_words(frame, tasks, folder / TABLE_NAME)
    if "ood_flag" in frame.columns:
        frame["ood_flag"] = frame["ood_flag"].str.lower() == "true"
    return Predictions(frame=frame, tasks=tasks, meta=meta, folder=folder)


def _refuse_words(frame: pd.DataFrame, tasks: Sequence[Task], path: Path) -> None:
    """Raise if a column of numbers holds something else."""
    texts = {"ood_flag", *(task.name + end for task in tasks if is_text(task) for end in ("", SET))}
    ours = tuple(f"{task.name}:" for task in tasks)
    values = {"failure_score", "n_tiles", *(task.name for task in tasks if not is_text(task))}
    for name in frame.columns:
        if name in texts or not (name in values or name.startswith(("ood_", *ours))):
            continue
        bad = frame[name][pd.to_numeric(frame[name], errors="coerce").isna() & frame[name].notna()]
        if len(bad):
            raise TableError(f"{path}: column {name!r} holds {str(bad.iloc[0])!r}, no number", hint="predict again")


def _text_columns(id_column: str, tasks: Sequence[Task]) -> dict[str, type[str]]:
    """A class may be called "None" or "NA": only empty cells are missing."""
    named = [task.name for task in tasks if is_text(task)]
    return dict.fromkeys([id_column, "ood_flag", "model_split", *named], str)
