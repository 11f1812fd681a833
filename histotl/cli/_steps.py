"""The steps of a recipe: which stage each verb calls, and whether its result is still fresh."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import histotl
from histotl.core.atomic import write_text
from histotl.core.config import from_mapping
from histotl.core.errors import UsageError
from histotl.core.progress import Report
from histotl.core.provenance import file_digest
from histotl.embed.config import EmbedConfig, TileConfig
from histotl.evaluate.config import EvaluateConfig
from histotl.evaluate.stain.config import StainConfig
from histotl.learn.config import PredictConfig, TrainConfig, check_plugins
from histotl.learn.cross_config import CrossConfig
from histotl.learn.explain_config import ExplainConfig
from histotl.learn.export_config import ExportConfig
from histotl.learn.retrieve_config import RetrieveConfig
from histotl.paint.config import PaintConfig

if TYPE_CHECKING:
    from histotl.learn.task import Task

_TRAINING = ("train", "crossval")
"""Verbs that need tasks."""

_VARIABLE = re.compile(r"\{([A-Za-z_]\w*)\}")


@dataclass(frozen=True, kw_only=True)
class RecipeStep:
    """One checked step.

    Args:
        verb: What to do.
        places: Path arguments by name, in the verb's order; the last is the output folder.
        configs: One configuration value for each class that the verb takes.
        tasks: The tasks, for train.
        options: The step's keys as written, for showing.
    """

    verb: str
    places: Mapping[str, Path]
    configs: tuple[Any, ...]
    tasks: tuple[Task, ...]
    options: Mapping[str, object]

    @property
    def out(self) -> Path:
        """The output folder."""
        return self.places["out"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a step ended."""

    ok: bool
    message: str


@dataclass(frozen=True, kw_only=True)
class _Verb:
    places: tuple[str, ...]
    configs: tuple[type, ...]
    call: Callable[[RecipeStep, Report], Outcome]
    makes: tuple[str, ...] = ()
    """Files that must be as the step left them for it to be fresh."""
    resumes: bool = False
    """The stage itself knows what is fresh, item by item."""


def steps_of(tree: Mapping[str, Any], variables: Mapping[str, Any], *, where: str) -> list[RecipeStep]:
    """Check and build all steps of a parsed recipe.

    Raises:
        UsageError: An unknown verb, table or key, a missing path, or a value of the wrong type.
    """
    for key in tree:
        if key not in ("vars", "step", "task"):
            raise UsageError(f"{where} has no table {key!r}", hint="a recipe has [vars], [[step]] and [[task]]")
    if not tree.get("step"):
        raise UsageError(f"{where} has no [[step]]", hint="add at least one [[step]] with a verb")
    for key in ("step", "task"):
        tables = tree.get(key, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise UsageError(f"{where}: {key} is no list of tables", hint=f"write [[{key}]] with two brackets")
    tasks = _tasks(tree["task"]) if tree.get("task") else ()
    variables = _fill(variables, variables, f"{where} [vars]")
    nested = [name for name, value in variables.items() if isinstance(value, str) and _VARIABLE.search(value)]
    if nested:
        raise UsageError(f"{where} [vars]: {nested[0]} is nested too deeply", hint="write its value out")
    names = [f"{where} step {i}" for i in range(1, len(tree["step"]) + 1)]
    return [_step(_fill(table, variables, name), tasks, name) for table, name in zip(tree["step"], names, strict=True)]


def run_step(step: RecipeStep, report: Report) -> Outcome:
    """Do one step, or skip it when nothing that it depends on has changed since it last ended well."""
    verb = VERBS[step.verb]
    if verb.resumes:
        return verb.call(step, report)
    mark, key = step.out / f".{step.verb}.fresh", _key(step)
    if mark.is_file() and mark.read_text(encoding="utf-8") == f"{key} {_made(step, verb)}":
        return Outcome(ok=True, message="fresh, skipped")
    outcome = verb.call(step, report)
    if outcome.ok:
        write_text(mark, f"{key} {_made(step, verb)}")
    return outcome


def _tasks(tables: list[dict[str, object]]) -> tuple[Task, ...]:
    from histotl.learn.task import check_names, task_from_dict

    return check_names([task_from_dict(table) for table in tables])


def _fill(table: Mapping[str, Any], variables: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Put variables in: a value that is just ``{name}`` keeps the variable's type, elsewhere it becomes text."""

    def fill(value: Any) -> Any:
        if isinstance(value, list):
            return [fill(item) for item in value]
        if not isinstance(value, str):
            return value
        if value.startswith("{") and value.endswith("}") and value[1:-1] in variables:
            return variables[value[1:-1]]
        unknown = [name for name in _VARIABLE.findall(value) if name not in variables]
        if unknown:
            cure = f"add {unknown[0]} = … to [vars]; it has: {', '.join(variables) or 'none'}"
            raise UsageError(f"{where}: {value!r} uses a variable that is not there", hint=cure)
        return _VARIABLE.sub(lambda match: str(variables[match[1]]), value)

    return {key: fill(value) for key, value in table.items()}


def _step(table: dict[str, Any], tasks: tuple[Task, ...], where: str) -> RecipeStep:
    name = str(table.get("verb", ""))
    if name not in VERBS:
        raise UsageError(f"{where}: verb is {name!r}", hint=f"one of: {', '.join(VERBS)}")
    verb, options = VERBS[name], {k: v for k, v in table.items() if k != "verb"}
    where = f"{where} ({name})"
    missing = [place for place in verb.places if not isinstance(options.get(place), str)]
    if missing:
        raise UsageError(f"{where} needs {' and '.join(missing)}", hint=f'add {missing[0]} = "…"')
    places = {place: Path(options[place]) for place in verb.places}
    rest = {k: v for k, v in options.items() if k not in verb.places}
    if name in _TRAINING and not tasks:
        raise UsageError(f"{where} has no tasks", hint="add [[task]] tables to the recipe")
    configs = _configs(verb.configs, rest, where)
    for config in configs:
        if isinstance(config, TrainConfig):
            check_plugins(config)
    return RecipeStep(
        verb=name, places=places, configs=configs, tasks=tasks if name in _TRAINING else (), options=options
    )


def _configs(classes: tuple[type, ...], options: dict[str, Any], where: str) -> tuple[Any, ...]:
    """Deal the keys of one table out to the classes that know them; the last one answers for unknown keys."""
    built: list[Any] = []
    left = dict(options)
    for i, cls in enumerate(classes):
        known = {f.name for f in dataclasses.fields(cls)}
        mine = left if i == len(classes) - 1 else {k: v for k, v in left.items() if k in known}
        left = {k: v for k, v in left.items() if k not in mine}
        built.append(from_mapping(cls, mine, where=where))
    return tuple(built)


def _key(step: RecipeStep) -> str:
    """Digest of the version, of a step's options, and of every file that it reads."""
    inputs = {
        name: [(str(p), file_digest(p)) for p in _files(place) if step.out not in p.parents]
        for name, place in _inputs(step)
    }
    options = [dataclasses.asdict(config) for config in step.configs]
    text = json.dumps(
        [histotl.__version__, step.verb, options, step.tasks, inputs, str(step.out)], sort_keys=True, default=str
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _inputs(step: RecipeStep) -> Iterator[tuple[str, Path]]:
    """Paths that a step reads: its arguments, and the options that name a file or folder."""
    from histotl.wsi.manifest import load_manifest

    yield from ((name, place) for name, place in step.places.items() if name != "out")
    if slides := step.places.get("slides"):
        # A table or a pattern names files that are not it.
        yield from ((f"slide {entry.slide_id}", entry.path) for entry in load_manifest(str(slides)))
    for config in step.configs:
        for name in ("table", "features", "sites", "model", "pretrained", "more_tables", "more_features"):
            given = getattr(config, name, None) or ()
            for place in (given,) if isinstance(given, str | Path) else given:
                yield f"option {name} {place}", Path(place)


def _files(place: Path) -> list[Path]:
    found = sorted(place.rglob("*")) if place.is_dir() else [place]
    return [path for path in found if path.is_file() and not path.name.startswith(".")]


def _made(step: RecipeStep, verb: _Verb) -> str:
    """Digest of the files that a step leaves behind; empty when one is missing."""
    files = [step.out / name for name in verb.makes]
    if not all(path.is_file() for path in files):
        return ""
    return hashlib.sha256(" ".join(file_digest(path) for path in files).encode()).hexdigest()


def _paint(step: RecipeStep, report: Report) -> Outcome:
    from histotl.paint.cohort import paint_cohort

    table = paint_cohort(step.out, step.configs[0], report=report)
    return Outcome(ok=True, message=f"painted slides → {table}")


def _tile(step: RecipeStep, report: Report) -> Outcome:
    from histotl.embed.tile import tile_slides

    summary = tile_slides(str(step.places["slides"]), step.out, tiling=step.configs[0], report=report)
    counts = f"{summary.done} done, {len(summary.failed)} failed, {len(summary.flagged)} flagged"
    return Outcome(ok=summary.ok, message=counts)


def _embed(step: RecipeStep, report: Report) -> Outcome:
    from histotl.embed.engine import embed_slides

    tiling, config = step.configs
    summary = embed_slides(str(step.places["slides"]), step.out, tiling=tiling, config=config, report=report)
    counts = f"{summary.done} done, {summary.skipped} fresh, {len(summary.failed)} failed"
    return Outcome(ok=summary.ok, message=f"{counts}, {summary.n_tiles} tiles")


def _embed_patches(step: RecipeStep, report: Report) -> Outcome:
    from histotl.embed.patches import embed_patches

    summary = embed_patches(str(step.places["manifest"]), step.out, config=step.configs[0], report=report)
    counts = f"{summary.done} done, {summary.skipped} fresh, {len(summary.failed)} failed"
    return Outcome(ok=summary.ok, message=f"{counts}, {summary.n_tiles} patches")


def _stain(step: RecipeStep, report: Report) -> Outcome:
    from histotl.evaluate.stain.stage import compare_stains

    tiling, config = step.configs
    result = compare_stains(str(step.places["slides"]), step.out, tiling=tiling, config=config, report=report)
    evidence = result.evidence
    counts = f"{len(evidence.slides)} slides, {len(evidence.failures)} failures"
    return Outcome(ok=evidence.ok, message=f"{counts} → {result.page}")


def _train(step: RecipeStep, report: Report) -> Outcome:
    from histotl.learn.train import train

    table, features = step.places["table"], step.places["features"]
    result = train(table, features, step.out, tasks=step.tasks, config=step.configs[0], report=report)
    cases = ", ".join(f"{count} {split}" for split, count in result.cases.items())
    return Outcome(ok=True, message=f"{cases} cases in {result.seconds:.1f} s")


def _export(step: RecipeStep, report: Report) -> Outcome:  # noqa: ARG001 - all verbs are called alike
    from histotl.learn.pretrained import export_aggregator

    written = export_aggregator(step.places["model"], step.out, config=step.configs[0])
    return Outcome(ok=True, message=f"→ {written}")


def _crossval(step: RecipeStep, report: Report) -> Outcome:
    from histotl.learn.cross_validate import cross_validate

    cross, config = step.configs
    table, features = step.places["table"], step.places["features"]
    result = cross_validate(table, features, step.out, tasks=step.tasks, config=config, cross=cross, report=report)
    return Outcome(ok=True, message=f"{len(result.predictions)} seeds of {cross.folds} folds → {step.out}")


def _predict(step: RecipeStep, report: Report) -> Outcome:
    from histotl.learn.predict import predict

    predict(step.places["model"], step.places["features"], step.out, config=step.configs[0], report=report)
    return Outcome(ok=True, message=f"→ {step.out / 'predictions.csv'}")


def _explain(step: RecipeStep, report: Report) -> Outcome:
    from histotl.learn.explaining import explain

    found = explain(step.places["model"], step.places["features"], step.out, config=step.configs[0], report=report)
    return Outcome(ok=True, message=f"{found.slides} {found.unit} → {found.scores}")


@dataclass(frozen=True, kw_only=True)
class _Neighbours:
    """What the verb ``retrieve`` has beside its settings."""

    k: int = 10
    """Neighbours of each."""


def _retrieve(step: RecipeStep, report: Report) -> Outcome:
    from histotl.learn.retrieval import retrieve

    neighbours, config = step.configs
    step.out.mkdir(parents=True, exist_ok=True)
    path = step.out / "neighbours.csv"
    found = retrieve(step.places["model"], step.places["features"], path, k=neighbours.k, config=config, report=report)
    return Outcome(ok=True, message=f"{found.queries} rows, {found.kept} training rows → {found.path}")


def _evaluate(step: RecipeStep, report: Report) -> Outcome:
    from histotl.evaluate.stage import evaluate_predictions

    evaluate_predictions(
        step.places["predictions"], step.places["table"], step.out, config=step.configs[0], report=report
    )
    return Outcome(ok=True, message=f"→ {step.out / 'report.html'}")


VERBS: Mapping[str, _Verb] = {
    "paint": _Verb(places=("out",), configs=(PaintConfig,), call=_paint, makes=("cohort.csv",)),
    "tile": _Verb(places=("slides", "out"), configs=(TileConfig,), call=_tile, resumes=True),
    "embed": _Verb(places=("slides", "out"), configs=(TileConfig, EmbedConfig), call=_embed, resumes=True),
    "embed_patches": _Verb(places=("manifest", "out"), configs=(EmbedConfig,), call=_embed_patches, resumes=True),
    "stain": _Verb(
        places=("slides", "out"),
        configs=(TileConfig, StainConfig),
        call=_stain,
        makes=("stain.json", "stain.html"),
    ),
    "train": _Verb(
        places=("table", "features", "out"),
        configs=(TrainConfig,),
        call=_train,
        makes=("model.json", "model.safetensors", "splits.csv"),
    ),
    "crossval": _Verb(
        places=("table", "features", "out"),
        configs=(CrossConfig, TrainConfig),
        call=_crossval,
        makes=("crossval.json",),
    ),
    "export": _Verb(
        places=("model", "out"),
        configs=(ExportConfig,),
        call=_export,
        makes=("aggregator.safetensors",),
    ),
    "predict": _Verb(
        places=("model", "features", "out"),
        configs=(PredictConfig,),
        call=_predict,
        makes=("predictions.csv", "predictions.json"),
    ),
    "explain": _Verb(
        places=("model", "features", "out"),
        configs=(ExplainConfig,),
        call=_explain,
        makes=("explanation.json",),
    ),
    "retrieve": _Verb(
        places=("model", "features", "out"),
        configs=(_Neighbours, RetrieveConfig),
        call=_retrieve,
        makes=("neighbours.csv",),
    ),
    "evaluate": _Verb(
        places=("predictions", "table", "out"),
        configs=(EvaluateConfig,),
        call=_evaluate,
        makes=("metrics.json", "metrics.md", "report.html"),
    ),
}
