"""The stage ``retrieve``: the training rows nearest to each case, as the evidence for its answer.

Writes a CSV with one row a neighbour, nearest first: ``query``, ``query_class`` (its label, where the table has one),
``rank`` from 1, ``id``, ``patient`` and ``class`` of the training row, and ``similarity``, the cosine of both vectors,
mean over the members. Of tiles of slides also ``query_x``, ``query_y``, ``x``, ``y``, their level-0 corners.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from histotl.core.atomic import atomic_path
from histotl.core.device import choose_device
from histotl.core.errors import IdentityError, UsageError
from histotl.core.intervals import Estimate
from histotl.core.progress import Report, Step, silent
from histotl.learn.bags import BagStore
from histotl.learn.config import PredictConfig
from histotl.learn.folder import check_folder
from histotl.learn.heads.base import Recalling
from histotl.learn.labels import hard
from histotl.learn.model import Model, load_model
from histotl.learn.neighbours import Index, Queries
from histotl.learn.predict import Chosen, choose
from histotl.learn.reading import read_table, with_ids
from histotl.learn.retrieve_config import RetrieveConfig
from histotl.learn.retrieved import Found
from histotl.learn.rows import Indices
from histotl.learn.table import build_cases
from histotl.learn.task import Task
from histotl.learn.trained import EVAL_ROWS


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """What :func:`retrieve` wrote.

    Args:
        path: The CSV.
        task: Whose neighbours these are.
        queries: Rows that were looked for.
        kept: Training rows that the model keeps.
        metrics: ``recall@k``, ``map@k`` and ``knn_accuracy@k`` (:mod:`histotl.learn.ranked`) with patient-bootstrap
            intervals; empty without labels.
        measured: Labelled queries with a training row of their class to be found: those that the metrics are over.
        unknown_patients: Queries whose patient nobody names, of which only the query itself is left out.
    """

    path: Path
    task: str
    queries: int
    kept: int
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    measured: int = 0
    unknown_patients: int = 0

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**vars(self), "metrics": {name: value.to_dict() for name, value in self.metrics.items()}}


def retrieve(
    model: Path | str,
    features: Path | str,
    out: Path | str,
    *,
    k: int = 10,
    config: RetrieveConfig | None = None,
    report: Report = silent,
) -> Retrieved:
    """Look for the training rows nearest to slides, patches or bags (to each tile, by a model that answers for tiles).

    Args:
        model: Model folder with a task of kind ``embedding``.
        features: Folder or file of features of the same identity.
        out: The CSV.
        k: Neighbours of each query.
        config: Settings.
        report: Told after every block of queries.

    Raises:
        UsageError: No task of the model keeps training rows, several do and none is named, or no features have a name
            that was asked for.
        IdentityError: Features of another identity than the training's.
        StoreError: Features or model missing or damaged.
        TableError: The table does not fit.
    """
    config, out = config or RetrieveConfig(), Path(out)
    if k < 1:
        raise UsageError(f"k is {k}", hint="give 1 or more neighbours, such as 10")
    if out.is_dir():
        raise UsageError(f"{out} is a folder", hint="name the file: --out neighbours.csv")
    check_folder(out.absolute().parent)
    loaded = load_model(model).to(choose_device(config.device))
    task = _task(loaded, config.task)
    index = Index(loaded, task)
    store = BagStore.open(features, backbone=config.backbone, keep=config.keep or str(loaded.setting("keep") or ""))
    if store.kind != loaded.kind:
        cure = f"give features of {loaded.kind}"
        raise IdentityError(f"the model was trained on {loaded.kind}, these are {store.kind}", hint=cure)
    loaded.check(store.identity, store.dim)
    chosen = _asked(choose(loaded, store, PredictConfig(table=config.table, splits=config.splits)), config)
    found = _search(loaded, index, chosen, _known(loaded, task, store, config), k, config, report, Found(task, index))
    table = found.table()
    with atomic_path(out) as path:
        table.to_csv(path, index=False, float_format="%.9g")
    metrics, measured = found.measure(k, seed=config.seed)
    lacking = found.unknown_patients if config.other_patients else 0
    if lacking:
        what = f"the patients of {lacking} queries are not known: of these, only the query itself is left out"
        report(Step(stage="retrieve", message=f"{what}; --table says whose they are"))
    return Retrieved(
        path=out,
        task=task.name,
        queries=found.queries,
        kept=len(index),
        metrics=metrics,
        measured=measured,
        unknown_patients=lacking,
    )


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What a table says: case -> patient, and case -> class index, NaN where missing."""

    patients: Mapping[str, str] = field(default_factory=dict)
    classes: Mapping[str, float] = field(default_factory=dict)


def _search(
    model: Model,
    index: Index,
    chosen: Chosen,
    known: _Known,
    k: int,
    config: RetrieveConfig,
    report: Report,
    found: Found,
) -> Found:
    """The neighbours of all queries."""
    patients = {**index.patient_of, **known.patients}
    of_tiles = model.level == "tile" and model.kind == "slides"
    for rows in chosen.bags.chunks(EVAL_ROWS):
        packed = chosen.bags.gather(rows)
        owner = np.repeat(rows, np.diff(packed.offsets.numpy())) if of_tiles else rows
        ids = [chosen.ids[row] for row in owner.tolist()]
        queries = Queries(
            embedded=index.embedded(packed),
            ids=ids,
            patients=[patients.get(name, "") for name in ids],
            corner=packed.coords.cpu().numpy() if of_tiles and packed.coords is not None else None,
        )
        near = index.nearest(queries, k, other_patients=config.other_patients)
        found.add(queries, near, np.array([known.classes.get(name, np.nan) for name in ids], dtype=np.float64))
        report(Step(stage="retrieve", done=int(rows[-1]) + 1, total=len(chosen.ids), item=ids[-1]))
    return found


def _task(model: Model, wanted: str) -> Task:
    """The task that is asked for, or the only one that keeps rows."""
    tasks = {task.name: task for task in model.tasks}
    able = [name for name, task in tasks.items() if isinstance(task.head, Recalling)]
    if wanted in tasks:
        return tasks[wanted]
    if wanted:
        raise UsageError(f"the model has no task {wanted!r}", hint=f"it has: {', '.join(tasks)}")
    if len(able) == 1:
        return tasks[able[0]]
    if able:
        raise UsageError(f"{len(able)} tasks keep training rows", hint=f"add --task with one of: {', '.join(able)}")
    first = next(iter(tasks))
    cure = f"train one of them as an embedding, such as --task \"{first}: embedding(column='{tasks[first].column}')\""
    raise UsageError(f"no task of the model keeps training rows: {', '.join(tasks)}", hint=cure)


def _asked(chosen: Chosen, config: RetrieveConfig) -> Chosen:
    """Only the cases of some names, in the order in which they are asked for."""
    names: Sequence[str] = tuple(dict.fromkeys(config.ids))
    if not names:
        return chosen
    place = {name: i for i, name in enumerate(chosen.ids)}
    for name in names:
        if name not in place:
            near = get_close_matches(name, chosen.ids, n=1)
            where = f"with features in {config.table}" if config.table else "among the features"
            cure = f"did you mean {near[0]}?" if near else f"names look like {chosen.ids[0]}"
            raise UsageError(f"there is no {name!r} {where}", hint=cure)
    rows: Indices = np.array([place[name] for name in names], dtype=np.int64)
    return replace(chosen, ids=tuple(names), bags=chosen.bags.subset(rows))


def _known(model: Model, task: Task, store: BagStore, config: RetrieveConfig) -> _Known:
    if not config.table:
        return _Known()
    id_column = str(model.setting("id_column") or store.id_column)
    frame = with_ids(read_table(config.table), id_column)
    patient = str(model.setting("patient") or "")
    whose = patient in frame.columns
    cases = build_cases(
        frame,
        # All that have labels: the condition of a task needs those of the task that it names.
        [each for each in model.tasks if set(each.reads) <= set(frame.columns)],
        id_column=id_column,
        patient=patient if whose else model.bag or id_column,
        split="",
        bag=model.bag,
    )
    classes = hard(cases.targets[task.name]).tolist() if task.name in cases.targets else [np.nan] * len(cases.ids)
    return _Known(
        patients=dict(zip(cases.ids, cases.patients, strict=True)) if whose else {},
        classes=dict(zip(cases.ids, classes, strict=True)),
    )
