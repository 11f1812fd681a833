"""The steps of a recipe: which stage each verb calls, and whether its result is still fresh."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histotl.core.atomic import write_text
from histotl.core.config import from_mapping
from histotl.core.errors import UsageError
from histotl.core.progress import Report
from histotl.core.provenance import file_digest
from histotl.embed.config import EmbedConfig, TileConfig
from histotl.evaluate.config import EvaluateConfig
from histotl.learn.config import PredictConfig, TrainConfig
from histotl.paint.config import PaintConfig


@dataclass(frozen=True, kw_only=True)
class RecipeStep:
    """One checked step.

    Args:
        verb: What to do.
        places: Path arguments by name, in the verb's order; the last is the output folder.
        configs: One configuration value for each class that the verb takes.
        tasks: Task tables, for train.
        options: The step's keys as written, for showing.
    """

    verb: str
    places: Mapping[str, Path]
    configs: tuple[Any, ...]
    tasks: tuple[Mapping[str, object], ...]
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
    tasks = tuple(tree.get("task", ()))
    return [_step(_fill(table, variables), tasks, f"{where} step {i}") for i, table in enumerate(tree["step"], 1)]


def run_step(step: RecipeStep, report: Report) -> Outcome:
    """Do one step, or skip it when nothing that it depends on has changed since it last ended well."""
    verb = VERBS[step.verb]
    mark, key = step.out / f".{step.verb}.fresh", _key(step)
    if not verb.resumes and mark.is_file() and mark.read_text(encoding="utf-8") == key:
        return Outcome(ok=True, message="fresh, skipped")
    outcome = verb.call(step, report)
    if outcome.ok and not verb.resumes:
        write_text(mark, key)
    return outcome


def _fill(table: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
    """Put variables in: a value that is just ``{name}`` keeps the variable's type, elsewhere it becomes text."""

    def fill(value: Any) -> Any:
        if isinstance(value, list):
            return [fill(item) for item in value]
        if not isinstance(value, str):
            return value
        if value.startswith("{") and value[1:-1] in variables:
            return variables[value[1:-1]]
        for name, given in variables.items():
            value = value.replace("{" + name + "}", str(given))
        return value

    return {key: fill(value) for key, value in table.items()}


def _step(table: dict[str, Any], tasks: tuple[Mapping[str, object], ...], where: str) -> RecipeStep:
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
    if name == "train" and not tasks:
        raise UsageError(f"{where} has no tasks", hint="add [[task]] tables to the recipe")
    configs = _configs(verb.configs, rest, where)
    return RecipeStep(
        verb=name, places=places, configs=configs, tasks=tasks if name == "train" else (), options=options
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
    """Digest of a step's options and of every byte that it reads."""
    inputs = {}
    for name, place in step.places.items():
        if name == "out":
            continue
        files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
        inputs[name] = [(str(p), file_digest(p)) for p in files if p.is_file() and not p.name.startswith(".")]
    text = json.dumps([step.verb, step.options, step.tasks, inputs], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _paint(step: RecipeStep, report: Report) -> Outcome:
    from histotl.paint.cohort import paint_cohort

    table = paint_cohort(step.out, step.configs[0], report=report)
    return Outcome(ok=True, message=f"painted slides → {table}")


def _tile(step: RecipeStep, report: Report) -> Outcome:
    from histotl.embed.tile import tile_slides

    summary = tile_slides(str(step.places["slides"]), step.out, tiling=step.configs[0], report=report)
    return Outcome(ok=summary.ok, message=f"{summary.done} done, {len(summary.failed)} failed")


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


def _train(step: RecipeStep, report: Report) -> Outcome:
    from histotl.learn.task import check_names, task_from_dict
    from histotl.learn.train import train

    tasks = check_names([task_from_dict(table) for table in step.tasks])
    table, features = step.places["table"], step.places["features"]
    result = train(table, features, step.out, tasks=tasks, config=step.configs[0], report=report)
    cases = ", ".join(f"{count} {split}" for split, count in result.cases.items())
    return Outcome(ok=True, message=f"{cases} cases in {result.seconds:.1f} s")


def _predict(step: RecipeStep, report: Report) -> Outcome:
    from histotl.learn.predict import predict

    predict(step.places["model"], step.places["features"], step.out, config=step.configs[0], report=report)
    return Outcome(ok=True, message=f"→ {step.out / 'predictions.csv'}")


def _evaluate(step: RecipeStep, report: Report) -> Outcome:
    from histotl.evaluate.stage import evaluate_predictions

    evaluate_predictions(
        step.places["predictions"], step.places["table"], step.out, config=step.configs[0], report=report
    )
    return Outcome(ok=True, message=f"→ {step.out / 'report.html'}")


VERBS: Mapping[str, _Verb] = {
    "paint": _Verb(places=("out",), configs=(PaintConfig,), call=_paint),
    "tile": _Verb(places=("slides", "out"), configs=(TileConfig,), call=_tile, resumes=True),
    "embed": _Verb(places=("slides", "out"), configs=(TileConfig, EmbedConfig), call=_embed, resumes=True),
    "embed_patches": _Verb(places=("manifest", "out"), configs=(EmbedConfig,), call=_embed_patches, resumes=True),
    "train": _Verb(places=("table", "features", "out"), configs=(TrainConfig,), call=_train),
    "predict": _Verb(places=("model", "features", "out"), configs=(PredictConfig,), call=_predict),
    "evaluate": _Verb(places=("predictions", "table", "out"), configs=(EvaluateConfig,), call=_evaluate),
}
