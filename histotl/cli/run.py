"""``histotl run``: the verbs chained by a recipe; what is fresh is skipped."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from histotl.cli._console import EXIT_OK, EXIT_SOME_FAILED, ProgressBar, out
from histotl.cli._steps import RecipeStep, run_step, steps_of
from histotl.core.errors import UsageError


def run(
    recipe: Path,
    /,
    *,
    set_: Annotated[tuple[str, ...], Parameter(name="--set")] = (),
    dry_run: bool = False,
    quiet: bool = False,
) -> int:
    """Do the steps of a recipe in order. A step whose inputs and options are unchanged is skipped.

    Args:
        recipe: TOML file with [vars] and [[step]] tables; see pipelines/.
        set_: Give a variable of the recipe another value, as name=value; repeat for more.
        dry_run: Print the steps with all values filled in, and do nothing.
        quiet: No progress.
    """
    steps = read_recipe(recipe, dict(_assignment(text) for text in set_))
    status = EXIT_OK
    for i, step in enumerate(steps, 1):
        out().print(f"[{i}/{len(steps)}] {step.verb} {' '.join(str(p) for p in step.places.values())}", markup=False)
        if dry_run:
            out().print(f"      {step.options}", markup=False)
            continue
        with ProgressBar(quiet=quiet) as report:
            outcome = run_step(step, report)
        out().print(f"      {outcome.message}", markup=False)
        if not outcome.ok:
            # Slides that failed are listed; the steps after it work on those that did not.
            status = EXIT_SOME_FAILED
    return status


def read_recipe(path: Path, settings: dict[str, str]) -> list[RecipeStep]:
    """Read a recipe, fill its variables in, and check every key of every step before anything runs.

    Raises:
        UsageError: The file is missing or no TOML, a variable is not the recipe's, or a step has a wrong key.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"there is no recipe {path}", hint="give the path of a .toml file, such as pipelines/…"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}", hint="mend the line that it names") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint="give a .toml file") from error
    variables = tree.get("vars", {})
    if not isinstance(variables, dict):
        raise UsageError(f"{path}: vars is no table", hint="write [vars], and below it name = value")
    variables = dict(variables)
    for key, text in settings.items():
        if key not in variables:
            raise UsageError(f"{path} has no variable {key!r}", hint=f"it has: {', '.join(variables) or 'none'}")
        variables[key] = text if isinstance(variables[key], str) else _literal(key, text)
    return steps_of(tree, variables, where=str(path))


def _literal(key: str, text: str) -> object:
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise UsageError(f"--set {key}={text!r} is not a value", hint="give a number, true, false or a list") from error


def _assignment(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise UsageError(f"--set {text!r} has no '='", hint="write --set name=value")
    return name, value
