"""The stage ``predict``: a model and features become a predictions folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from histotl.core.allocator import large_blocks_kept
from histotl.core.device import choose_device
from histotl.core.errors import CorruptFileError, IdentityError, TableError, UsageError
from histotl.core.progress import Report, Step, silent
from histotl.core.provenance import Provenance, file_digest
from histotl.learn.bags import Bags, BagStore, Packed
from histotl.learn.columns import Columns, answer_columns, probability_column
from histotl.learn.config import PredictConfig
from histotl.learn.covariate_values import CovariateValues, read_values, unknown_values
from histotl.learn.decisions import slide_means
from histotl.learn.folder import check_folder
from histotl.learn.gate import GateScores
from histotl.learn.gate_fit import mean_vectors
from histotl.learn.model import WEIGHTS_NAME, Answers, Model, load_model
from histotl.learn.predictions import (
    TILE_FOLDER,
    clear_predictions,
    write_predictions,
)
from histotl.learn.prior import Floats, parse_priors, with_priors
from histotl.learn.reading import column, read_table, with_ids
from histotl.learn.scores import entropy
from histotl.learn.train import SPLITS_NAME
from histotl.store.embeddings import ViewSpec
from histotl.store.tile_scores import write_tile_scores


@dataclass(frozen=True, kw_only=True, eq=False)
class Chosen:
    """What is predicted.

    Args:
        ids: Name of each case.
        bags: Feature rows of each case, with what is known of it where the model is told covariates.
        lacking: Names that the table wants predicted and that have no features.
    """

    ids: tuple[str, ...]
    bags: Bags
    lacking: tuple[str, ...] = ()


@large_blocks_kept()
def predict(
    model: Path | str,
    features: Path | str,
    out: Path | str,
    *,
    config: PredictConfig | None = None,
    report: Report = silent,
) -> Path:
    """Predict every slide or patch that has features (or that the table names).

    Args:
        model: Model folder.
        features: Folder or file of features of the same identity.
        out: Predictions folder, made as needed.
        config: Settings.
        report: Told after every block of slides.

    Returns:
        The predictions folder.

    Raises:
        IdentityError: Features of another identity than the training's, or with several kinds of views.
            Views count only where they are wanted.
        UsageError: Views are wanted, and the features have none; or the model is told covariates without a table.
        StoreError: Features or model missing or damaged.
        TableError: The table does not fit.
    """
    config, model_folder, out = config or PredictConfig(), Path(model), Path(out)
    check_folder(out)
    loaded = load_model(model_folder).to(choose_device(config.device))
    keep = config.keep or str(loaded.setting("keep") or "")
    store = BagStore.open(features, backbone=config.backbone, views=config.tta, keep=keep)
    if store.kind != loaded.kind:
        raise IdentityError(
            f"the model was trained on {loaded.kind}, these are {store.kind}", hint=f"give features of {loaded.kind}"
        )
    loaded.check(store.identity, store.dim)
    chosen, priors = choose(loaded, store, config), parse_priors(config.prior, loaded.tasks)
    _tell(report, chosen)
    for text in () if chosen.bags.covariates is None else loaded.covariates.sayings(chosen.bags.covariates):
        report(Step(stage="predict", message=text))
    if store.emptied:
        report(Step(stage="predict", message=f"{store.what_is_left_out(keep)}; they get no answer"))
    clear_predictions(out)
    tiles = out / TILE_FOLDER if config.tile_scores and store.kind == "slides" else None
    parts: list[Columns] = []
    done = 0
    for rows in chosen.bags.chunks(config.batch_tiles):
        packed = chosen.bags.gather(rows)
        ids = chosen.ids[done : done + len(rows)]
        place = None if tiles is None else TilePlaces.of(tiles, chosen.bags, rows, store)
        views = (chosen.bags.gather(rows, view=view) for view in range(store.source.n_views))
        parts.append(case_columns(loaded, packed, views, ids, place, priors))
        done += len(rows)
        report(Step(stage="predict", done=done, total=len(chosen.ids), item=ids[-1]))
    frame = pd.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    frame.insert(0, loaded.id_column, list(chosen.ids))
    frame["model_split"] = _splits_of(model_folder, loaded.id_column, chosen.ids)
    meta = _meta(loaded, model_folder, features, config, store.views)
    meta |= {"keep": keep, "no_row_kept": list(store.emptied)}
    if loaded.bag and store.kind == "slides":
        spans = (store.spans(chosen.bags.rows_of(place)) for place in range(len(chosen.ids)))
        meta["members"] = {case: [slide for slide, _ in found] for case, found in zip(chosen.ids, spans, strict=True)}
    if chosen.bags.covariates is not None:
        meta["covariates"] = loaded.covariates.account(chosen.bags.covariates)
    write_predictions(out, frame, tasks=loaded.tasks, id_column=loaded.id_column, meta=meta)
    return out


def choose(model: Model, store: BagStore, config: PredictConfig) -> Chosen:
    """Cases to predict, in the order of the table, or of the features.

    Raises:
        TableError: The table lacks a column or names nothing that has features; a model of bags without a table.
        UsageError: The model is told covariates, and there is no table.
    """
    if not config.table:
        if model.bag:
            cure = f"add --table TABLE.csv with the columns {store.id_column} and {model.bag}"
            raise TableError(f"the model answers for bags by {model.bag!r}, and no table says which", hint=cure)
        bags = store.bags([[i] for i in range(len(store.ids))])
        return Chosen(ids=store.ids, bags=replace(bags, covariates=_without_table(model, len(bags), config)))
    id_column = str(model.setting("id_column") or store.id_column)
    frame = with_ids(read_table(config.table), id_column)
    names = column(frame, id_column, flag="--id-column of train")
    owners = column(frame, model.bag, flag="--bag of train") if model.bag else names
    place, lacking = {name: i for i, name in enumerate(store.ids)}, []
    cases, lines = dict[str, list[int]](), dict[str, list[int]]()
    for line, (name, wanted, owner) in enumerate(zip(names, _wanted(model, frame, config), owners, strict=True)):
        if not wanted or not name or not owner:
            continue
        lines.setdefault(owner, []).append(line)
        if name not in place:
            lacking.append(name)
        elif place[name] not in (rows := cases.setdefault(owner, [])):
            rows.append(place[name])
    if store.kind == "slides":
        _refuse_in_two(cases, store)
    if not cases:
        cure = "check the table's ids against the features"
        raise TableError(f"no row of {config.table} that is to be predicted has features", hint=cure)
    values = _of_table(model, frame, [lines[owner] for owner in cases], config)
    bags = replace(store.bags(list(cases.values())), covariates=values)
    return Chosen(ids=tuple(cases), bags=bags, lacking=tuple(lacking))


def _refuse_in_two(cases: Mapping[str, Sequence[int]], store: BagStore) -> None:
    """Raise where a slide is of two bags: its tiles could be scored for one only."""
    of: dict[int, str] = {}
    for owner, places in cases.items():
        for place in places:
            if (other := of.setdefault(place, owner)) != owner:
                fact = f"slide {store.ids[place]!r} is in two bags: {other!r} and {owner!r}"
                raise TableError(fact, hint="give every slide one bag")


def _without_table(model: Model, n: int, config: PredictConfig) -> CovariateValues | None:
    """What is known of n cases without a table: nothing; None where the model is told nothing."""
    covariates = model.covariates.covariates
    if not covariates:
        return None
    if not config.covariates_missing:
        names = ", ".join(covariate.column for covariate in covariates)
        cure = f"add --table TABLE.csv with the columns {names}, or --covariates-missing to answer without them"
        raise UsageError(f"the model is told {names}, and no table says them", hint=cure)
    return unknown_values(covariates, n)


def _of_table(
    model: Model, frame: pd.DataFrame, lines: Sequence[Sequence[int]], config: PredictConfig
) -> CovariateValues | None:
    """What the table says of cases of some lines each; None where the model is told nothing."""
    covariates = model.covariates.covariates
    if not covariates:
        return None
    absent = [covariate.column for covariate in covariates if covariate.column not in frame.columns]
    if absent and not config.covariates_missing:
        fact = f"the model is told {', '.join(absent)}, and {config.table} has no such column"
        raise TableError(fact, hint="add it, with empty cells where it is unknown, or pass --covariates-missing")
    return read_values(frame, covariates, lines, absent=config.covariates_missing)


def _wanted(model: Model, frame: pd.DataFrame, config: PredictConfig) -> list[bool]:
    """Whether each row of the table is of the splits that were asked for."""
    if not config.splits:
        return [True] * len(frame)
    name = str(model.setting("split_column") or "split")
    splits = [(split or "").lower() for split in column(frame, name, flag="--split-column of train")]
    if not set(splits) & set(config.splits):
        held = ", ".join(sorted(set(splits) - {""})) or "none"
        raise TableError(f"no row of {config.table} has {name} {' or '.join(config.splits)}", hint=f"it has: {held}")
    return [split in config.splits for split in splits]


def _tell(report: Report, chosen: Chosen) -> None:
    if chosen.lacking:
        n, shown = len(chosen.lacking), ", ".join(chosen.lacking[:5]) + (" …" if len(chosen.lacking) > 5 else "")
        report(Step(stage="predict", message=f"{n} rows of the table have no features and get no answer: {shown}"))


@dataclass(frozen=True, kw_only=True, eq=False)
class TilePlaces:
    """Where the scores of the tiles of some cases go.

    Args:
        folder: It gets one file a slide.
        slides: (slide id, its rows among those of the cases), in their order.
        coords_l0: int64 (N, 2) corners of the rows.
    """

    folder: Path
    slides: Sequence[tuple[str, slice]]
    coords_l0: npt.NDArray[np.int64]

    @classmethod
    def of(cls, folder: Path, bags: Bags, chosen: npt.NDArray[np.int64], store: BagStore) -> TilePlaces | None:
        """Of the bags ``chosen``, which follow each other; None where the features have no coordinates."""
        rows = bags.rows[bags.offsets[chosen[0]] : bags.offsets[chosen[-1] + 1]]
        coords = store.source.coords(rows)
        return None if coords is None else cls(folder=folder, slides=store.spans(rows), coords_l0=coords)


def case_columns(
    model: Model,
    packed: Packed,
    views: Iterable[Packed],
    ids: tuple[str, ...],
    tiles: TilePlaces | None,
    priors: Mapping[str, Floats],
) -> Columns:
    """Columns for some cases, the mean over plain features and views; tile scores are written on the way."""
    offsets = packed.offsets.numpy()
    answers = _mean_answers(model.answer(each) for each in chain((packed,), views))
    slides = answers
    if model.level == "tile" and model.kind == "slides":
        tasks, plain = (slide_means(found, offsets) for found in (answers.tasks, answers.uncalibrated))
        slides = Answers(tasks=tasks, uncalibrated=plain)
    found = with_priors(slides.tasks, model.tasks, model.facts, priors)
    plain = with_priors(slides.uncalibrated, model.tasks, model.facts, priors)
    columns = answer_columns(model.tasks, found, plain, decisions=model.decisions, ids=ids)
    gate = None
    if model.gate is not None:
        gate = model.gate.score(mean_vectors(packed.x, offsets), packed.x, offsets)
        columns |= {"ood_score": gate.score, "ood_p": gate.p, "ood_flag": gate.flag}
        columns |= {f"ood_{name}": scores for name, scores in gate.raw.items()}
    first = next((task for task in model.tasks if task.is_classification), None)
    if first is not None:
        columns["failure_score"] = entropy(found[first.name])
    columns["n_tiles"] = np.diff(offsets)
    if tiles is not None:
        _write_tiles(model, tiles, answers, gate)
    return columns


def _mean_answers(all_of_them: Iterable[Answers]) -> Answers:
    """The mean of answers for the same bags, one taken after the other; of one, its very bits."""
    total, count = None, 0
    for answers in all_of_them:
        total, count = answers if total is None else _added(total, answers), count + 1
    if total is None:
        raise ValueError("no answers")
    if count == 1:
        return total
    tasks, plain = (
        {name: values / count for name, values in sums.items()} for sums in (total.tasks, total.uncalibrated)
    )
    return Answers(tasks=tasks, uncalibrated=plain, weights=None if total.weights is None else total.weights / count)


def _added(one: Answers, other: Answers) -> Answers:
    weights = None if one.weights is None or other.weights is None else one.weights + other.weights
    tasks = {name: values + other.tasks[name] for name, values in one.tasks.items()}
    plain = {name: values + other.uncalibrated[name] for name, values in one.uncalibrated.items()}
    return Answers(tasks=tasks, uncalibrated=plain, weights=weights)


def _write_tiles(model: Model, tiles: TilePlaces, answers: Answers, gate: GateScores | None) -> None:
    scores: dict[str, npt.NDArray[np.float64]] = {}
    if answers.weights is not None and not model.members[0].pools_first:
        scores |= _attention(model, answers.weights)
    if gate is not None and gate.tiles is not None:
        scores["ood_score"] = gate.tiles
    if model.level == "tile":
        for task in model.tasks:
            names = [probability_column(task, name) for name in task.classes] or [task.name]
            # A slash would make a group of the column.
            scores |= {name.replace("/", "_"): answers.tasks[task.name][:, i] for i, name in enumerate(names)}
    for slide_id, rows in tiles.slides if scores else ():
        part = {name: values[rows] for name, values in scores.items()}
        write_tile_scores(tiles.folder / f"{slide_id}.h5", tiles.coords_l0[rows], part, {"slide_id": slide_id})


def _attention(model: Model, weights: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    """One column; where tasks weigh the tiles in their own ways, their mean, and one column a task."""
    if weights.ndim == 1:
        return {"attention": weights}
    own = {f"attention:{task.name}".replace("/", "_"): weights[:, i] for i, task in enumerate(model.tasks)}
    return {"attention": weights.mean(axis=1)} | (own if len(own) > 1 else {})


def _splits_of(model_folder: Path, id_column: str, ids: tuple[str, ...]) -> list[str]:
    """Part that each case had in training; empty for cases that the model never saw."""
    path = model_folder / SPLITS_NAME
    if not path.is_file():
        return [""] * len(ids)
    frame = read_table(path)
    if not {id_column, "split"} <= set(frame.columns):
        raise CorruptFileError(f"{path} lacks {id_column} or split", hint="copy the model again, or train again")
    known = dict(_pairs(frame, id_column))
    return [known.get(name, "") for name in ids]


def _pairs(frame: pd.DataFrame, id_column: str) -> Iterator[tuple[str, str]]:
    names, splits = (column(frame, name, flag=SPLITS_NAME) for name in (id_column, "split"))
    for name, split in zip(names, splits, strict=True):
        yield name or "", split or ""


def _meta(
    model: Model, folder: Path, features: Path | str, config: PredictConfig, views: ViewSpec | None
) -> dict[str, object]:
    digest = file_digest(folder / WEIGHTS_NAME, whole=True)
    provenance = Provenance.now(specs={"predict": asdict(config)}, inputs={"model": digest})
    return {
        "model": str(folder),
        "model_digest": digest,
        "identity_digest": None if model.identity is None else model.identity.digest,
        "level": model.level,
        "kind": model.kind,
        "bag": model.bag,
        "table_id_column": "" if model.bag else str(model.setting("id_column") or ""),
        "features": str(features),
        "backbone": config.backbone,
        "tta": None if views is None else asdict(views),
        "aggregator": model.architecture.aggregator,
        "alpha": None if model.gate is None else model.gate.alpha,
        "decisions": {name: found.to_dict() for name, found in model.decisions.items()},
        "provenance": asdict(provenance),
    }
