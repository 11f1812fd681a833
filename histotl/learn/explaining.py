"""The stage ``explain``: what each tile did to the answers, and which of the explanations to believe.

Writes ``tile_scores/<slide_id>.h5`` with a column ``<task>:<class>:<method>`` for each class (``<task>:attention``,
which is the same for all), beside what `histotl predict` wrote there, and ``explanation.json`` with the comparison.
For a model of bags of slides, each slide's file has its part. For a model of bags of patches ``patch_scores.csv`` has
the same columns, one row a patch of each bag. Scores are in logits, mean over the members.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from histotl.core.allocator import large_blocks_kept
from histotl.core.atomic import atomic_path, write_text
from histotl.core.device import choose_device
from histotl.core.errors import IdentityError, UsageError
from histotl.core.progress import Report, Step, silent
from histotl.core.provenance import Provenance, file_digest
from histotl.core.registry import available, create
from histotl.learn.bags import BagStore, with_slides
from histotl.learn.config import PredictConfig
from histotl.learn.explain.base import Explainer, Question, for_questions
from histotl.learn.explain_config import ExplainConfig
from histotl.learn.faithfulness import MIN_TILES, Faithfulness, drops, mean_scores, summarise, towards
from histotl.learn.folder import check_folder
from histotl.learn.model import WEIGHTS_NAME, Model, load_model
from histotl.learn.predict import choose
from histotl.learn.predictions import EXPLANATION_NAME, META_NAME, PATCH_NAME, TILE_FOLDER
from histotl.learn.readout import Readout, readout_of
from histotl.learn.rows import Indices
from histotl.learn.train import SPLITS_NAME
from histotl.store.tile_scores import add_tile_scores

RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What :func:`explain` wrote.

    Args:
        folder: Where.
        scores: The folder ``tile_scores``, or the table ``patch_scores.csv``.
        slides: Number of slides, or of bags, explained.
        unit: ``slides``, or ``bags``.
        faithfulness: Task -> method (and ``random``) -> how faithful it is, the most faithful first.
        tested_on: The slides or bags that say so.
        left_out: Method -> why it has no meaning for this model.
    """

    folder: Path
    scores: Path
    slides: int
    unit: str
    faithfulness: Mapping[str, Mapping[str, Faithfulness]]
    tested_on: tuple[str, ...]
    left_out: Mapping[str, str]


@large_blocks_kept()
def explain(
    model: Path | str,
    features: Path | str,
    out: Path | str,
    *,
    config: ExplainConfig | None = None,
    report: Report = silent,
) -> Explanation:
    """Score the tiles of every slide that has features (or that the table names), or the rows of every bag.

    Args:
        model: Model folder of a slide-level model, or of one of bags.
        features: Folder or file of features of the same identity.
        out: Predictions folder of the same model, or any other; made as needed.
        config: Settings.
        report: Told after every slide.

    Raises:
        UsageError: The model answers for tiles; a task or method is unknown; a method that was asked for has no meaning
            for this model; or the model is told covariates without a table.
        IdentityError: Features of another identity than the training's; or ``out`` holds another model's predictions.
        StoreError: Features or model missing or damaged.
        TableError: The table does not fit.
    """
    config, out = config or ExplainConfig(), Path(out)
    check_folder(out)
    work = _Work(Path(model), features, config)
    _refuse_another_model(out, work.digest)
    chosen = choose(work.model, work.store, _choice(config, config.splits))
    for text in () if chosen.bags.covariates is None else work.model.covariates.sayings(chosen.bags.covariates):
        report(Step(stage="explain", message=text))
    methods, left_out = work.methods(chosen.bags.rows_of(0), chosen.ids[0])
    tested_on, faithfulness = _compare(work, chosen.ids, methods, report)
    patches = []
    for place, name in enumerate(chosen.ids):
        rows = chosen.bags.rows_of(place)
        columns = work.columns(rows, name, methods)
        if work.store.kind == "patches":
            owners = {work.model.bag: name, work.store.id_column: work.store.names(rows)}
            patches.append(pd.DataFrame({**owners, **columns}))
        else:
            _add_to_slides(out / TILE_FOLDER, work, rows, columns)
        report(Step(stage="explain", done=place + 1, total=len(chosen.ids), item=name))
    if patches:
        with atomic_path(out / PATCH_NAME) as path:
            pd.concat(patches).to_csv(path, index=False, float_format="%.9g")
    found = Explanation(
        folder=out,
        scores=out / (PATCH_NAME if patches else TILE_FOLDER),
        slides=len(chosen.ids),
        unit="bags" if work.model.bag else "slides",
        faithfulness=faithfulness,
        tested_on=tested_on,
        left_out=left_out,
    )
    _write(found, work, config)
    return found


class _Work:
    """A model and features, and the questions that they make."""

    def __init__(self, folder: Path, features: Path | str, config: ExplainConfig) -> None:
        self.folder, self.config = folder, config
        self.model, self.digest = load_model(folder), file_digest(folder / WEIGHTS_NAME, whole=True)
        if self.model.level == "tile":
            cure = "its own answers are in what predict wrote; train with --level slide, or --bag for patches"
            raise UsageError("the model answers for single tiles, there is nothing to explain by them", hint=cure)
        keep = config.keep or str(self.model.setting("keep") or "")
        self.store = BagStore.open(features, backbone=config.backbone, keep=keep)
        if self.store.kind != self.model.kind:
            raise IdentityError(f"the model was trained on {self.model.kind}, these are {self.store.kind}")
        self.model.check(self.store.identity, self.store.dim)
        self.device = choose_device(config.device)
        self.readouts = _readouts(self.model, config.task)
        models = {task: self.model.answering(task) for task in self.readouts}
        made = {id(each): [for_questions(net).to(self.device) for net in each.members] for each in models.values()}
        self.networks = {task: made[id(each)] for task, each in models.items()}
        self.known = {task: self._known(each) for task, each in models.items()}

    def _known(self, model: Model) -> dict[str, torch.Tensor]:
        """Slide -> what a model's networks are told of it, float64 (1, c); nothing where they are told nothing."""
        if not model.covariates.parts:
            return {}
        every = choose(self.model, self.store, _choice(self.config, ()))
        columns = model.covariates.encode(every.bags.covariates)
        known = torch.tensor(columns, dtype=torch.float64, device=self.device)
        return dict(zip(every.ids, torch.split(known, 1), strict=True))

    def questions(self, rows: Indices, slide_id: str, task: str) -> list[Question]:
        """The question about one slide for each member."""
        x = torch.from_numpy(self.store.source.read(rows)).double().to(self.device)
        coords = self.store.source.coords(rows)
        place = None if coords is None else torch.from_numpy(coords).to(self.device)
        place = with_slides(place, rows, self.store.starts if self.model.bag else None)
        readout = self.readouts[task].matrix.to(self.device)
        known = self.known[task].get(slide_id)
        return [
            Question(network=net, x=x, coords=place, task=task, readout=readout, covariates=known)
            for net in self.networks[task]
        ]

    def methods(self, rows: Indices, slide_id: str) -> tuple[dict[str, dict[str, Explainer]], dict[str, str]]:
        """Task -> method -> explainer, and why others are left out; tried on one slide."""
        specs = self.config.method or tuple(available("explain"))
        made = {spec: cast("Explainer", create("explain", spec)) for spec in specs}
        methods: dict[str, dict[str, Explainer]] = {}
        left_out: dict[str, str] = {}
        for task in self.readouts:
            methods[task], questions = {}, self.questions(rows, slide_id, task)
            for spec, explainer in made.items():
                try:
                    explainer.scores(questions[0])
                except UsageError as error:
                    if self.config.method:
                        raise
                    left_out[spec] = error.message
                else:
                    methods[task][spec] = explainer
        return methods, left_out

    def columns(
        self, rows: Indices, slide_id: str, methods: Mapping[str, Mapping[str, Explainer]]
    ) -> dict[str, npt.NDArray[np.float64]]:
        """Scores of the tiles of a slide."""
        columns = {}
        for task, explainers in methods.items():
            questions = self.questions(rows, slide_id, task)
            for spec, explainer in explainers.items():
                scores = mean_scores(questions, explainer).cpu().numpy()
                names = self.readouts[task].names if explainer.signed else ("",)
                for name, values in zip(names, scores.T, strict=False):
                    # A slash would make a group of the column.
                    columns[column_name(task, name, spec).replace("/", "_")] = values
        return columns

    def coords(self, rows: Indices) -> Indices:
        """Corners of tiles, (n, 2)."""
        coords = self.store.source.coords(rows)
        if coords is None:
            raise UsageError("these features have no tile positions", hint="embed the slides with histotl embed")
        return coords

    def rows(self) -> dict[str, Indices]:
        """Rows of every slide that has features, or of every bag of the table."""
        if self.model.bag:
            every = choose(self.model, self.store, _choice(self.config, ()))
            return {name: every.bags.rows_of(place) for place, name in enumerate(every.ids)}
        return {name: self.store.bags([[place]]).rows for place, name in enumerate(self.store.ids)}


def _add_to_slides(folder: Path, work: _Work, rows: Indices, columns: Mapping[str, npt.NDArray[np.float64]]) -> None:
    """Put the columns of a slide, or of a bag of slides, into the files of tile scores."""
    coords = work.coords(rows)
    for slide_id, part in work.store.spans(rows):
        about = {"slide_id": slide_id, "explained_by": work.digest}
        scores = {name: values[part] for name, values in columns.items()}
        add_tile_scores(folder / f"{slide_id}.h5", coords[part], scores, about)


def _choice(config: ExplainConfig, splits: tuple[str, ...]) -> PredictConfig:
    """Which slides, said as for predict."""
    return PredictConfig(table=config.table, splits=splits, covariates_missing=config.covariates_missing)


def column_name(task: str, name: str, method: str) -> str:
    """Column of the tile scores with what ``method`` says of the column ``name`` of a task's read-out."""
    return ":".join(part for part in (task, name, method) if part)


def _readouts(model: Model, wanted: Sequence[str]) -> dict[str, Readout]:
    tasks = {task.name: task for task in model.tasks}
    for name in wanted:
        if name not in tasks:
            raise UsageError(f"the model has no task {name!r}", hint=f"it has: {', '.join(tasks)}")
    asked = [task for name, task in tasks.items() if not wanted or name in wanted]
    return {task.name: readout_of(task, task.head.n_outputs(task.n_classes)) for task in asked}


def _compare(
    work: _Work, chosen: Sequence[str], methods: Mapping[str, Mapping[str, Explainer]], report: Report
) -> tuple[tuple[str, ...], dict[str, dict[str, Faithfulness]]]:
    """Faithfulness of the methods over some slides, and which slides these are."""
    config, rows = work.config, work.rows()
    patients = _validation_patients(work.folder)
    told = set(rows).intersection(*filter(None, work.known.values()))
    pool = [name for name in rows if name in patients and name in told] or list(chosen)
    pool = [name for name in pool if len(rows[name]) >= MIN_TILES]
    if not config.faithfulness or not pool:
        return (), {}
    order = np.random.default_rng(config.seed).permutation(len(pool))[: config.faithfulness]
    tested = tuple(pool[i] for i in sorted(order.tolist()))
    owners = [patients.get(name, name) for name in tested]
    result = {}
    for task, explainers in methods.items():
        found = []
        for done, name in enumerate(tested):
            questions = work.questions(rows[name], name, task)
            answer = torch.stack([question.answer() for question in questions]).mean(dim=0)
            asked = towards(questions, work.readouts[task].towards_answer(answer.cpu()).to(work.device))
            found.append(drops(asked, explainers, seed=config.seed))
            report(Step(stage="faithfulness", done=done + 1, total=len(tested), item=f"{task}, {name}"))
        result[task] = summarise(found, owners, resamples=RESAMPLES, seed=config.seed)
    return tested, result


def _validation_patients(folder: Path) -> dict[str, str]:
    """Validation slide -> patient, as the model's folder has it; empty when it does not say."""
    path = folder / SPLITS_NAME
    if not path.is_file():
        return {}
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame = frame[frame["split"] == "val"]
    return dict(zip(frame.iloc[:, 0], frame["patient"], strict=True))


def _refuse_another_model(out: Path, digest: str) -> None:
    path = out / META_NAME
    if not path.is_file():
        return
    other = json.loads(path.read_text(encoding="utf-8")).get("model_digest")
    if other != digest:
        fact = f"{out} holds predictions of another model (digest {other}, this one is {digest})"
        raise IdentityError(fact, hint="predict with this model first, or give another output folder")


def _write(found: Explanation, work: _Work, config: ExplainConfig) -> None:
    entries = {
        task: {name: value.to_dict() for name, value in methods.items()} for task, methods in found.faithfulness.items()
    }
    provenance = Provenance.now(specs={"explain": asdict(config)}, inputs={"model": work.digest})
    content = {
        "faithfulness": entries,
        "tested_on": list(found.tested_on),
        "left_out": dict(found.left_out),
        "model_digest": work.digest,
        "slides": found.slides,
        "provenance": asdict(provenance),
    }
    write_text(found.folder / EXPLANATION_NAME, json.dumps(content, indent=1, default=str) + "\n")
