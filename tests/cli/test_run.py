"""Recipes: what is wrong is said before anything runs, and a step is fresh only while all it hangs on is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from histotl.cli import _steps
from histotl.cli._steps import Outcome, RecipeStep, run_step
from histotl.cli.main import call
from histotl.cli.run import read_recipe
from histotl.core.errors import HistotlError, UsageError
from histotl.core.progress import Report, silent

TASK = '\n[[task]]\nname = "label"\nkind = "binary"\nclasses = ["no", "yes"]\n'
TRAIN = '[vars]\nout = "x"\n[[step]]\nverb = "train"\ntable = "t.csv"\nfeatures = "f"\nout = "{out}/model"\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[step]\nverb = "train"', "two brackets"),
        ('step = ["a"]', "two brackets"),
        (TRAIN + TASK.replace("[[task]]", "[task]"), "two brackets"),
        ('vars = [1]\n[[step]]\nverb = "train"', "vars is no table"),
        (TRAIN.replace("{out}", "{outt}") + TASK, "uses a variable that is not there"),
        (TRAIN.replace('"x"', '"{a}"\na = "{b}"\nb = "x"') + TASK, "nested too deeply"),
        (TRAIN + TASK.replace("binary", "binry"), "did you mean binary"),
        (TRAIN + TASK.replace("classes", "class"), "did you mean classes"),
        (TRAIN + TASK + TASK, "two tasks"),
        (TRAIN + 'aggregator = "abmli"\n' + TASK, "did you mean abmil"),
    ],
)
def test_wrong_recipes_are_refused_before_anything_runs(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(HistotlError, match=told):
        read_recipe(tmp_path / "recipe.toml", {})


def test_recipes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(b"\xff\xfe")
    for path, told in ((tmp_path / "recipe.toml", "not TOML"), (tmp_path, "cannot be read")):
        with pytest.raises(UsageError, match=told):
            read_recipe(path, {})


def test_variables_may_use_variables_and_be_switches(tmp_path: Path) -> None:
    text = '[vars]\nbase = "b"\nout = "{base}/o"\nflag = false\n[[step]]\nverb = "evaluate"\npredictions = "p"\n'
    (tmp_path / "recipe.toml").write_text(text + 'table = "t.csv"\nout = "{out}"\nallow_missing = "{flag}"\n')
    (step,) = read_recipe(tmp_path / "recipe.toml", {"base": "c", "flag": "true"})
    assert step.out == Path("c/o")
    assert step.configs[0].allow_missing is True


def test_a_step_is_fresh_only_while_all_it_hangs_on_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []
    verb = _steps.VERBS["predict"]

    def made(step: RecipeStep, report: Report) -> Outcome:
        runs.append(step.verb)
        # Results that lie inside of an input must not make their own step stale.
        for name in (*verb.makes, "evaluation.html"):
            (step.out / name).parent.mkdir(parents=True, exist_ok=True)
            (step.out / name).write_text(f"{name} {len(runs)}")
        return Outcome(ok=True, message="done")

    fake = _steps._Verb(places=verb.places, configs=verb.configs, call=made, makes=verb.makes)
    monkeypatch.setattr(_steps, "VERBS", {**_steps.VERBS, "predict": fake})
    for name in ("model/model.json", "features/a.h5", "table.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    text = f'[[step]]\nverb = "predict"\nmodel = "{tmp_path}/model"\nfeatures = "{tmp_path}/features"\n'
    text += f'out = "{tmp_path}/model/predictions"\ntable = "{tmp_path}/table.csv"\n'

    def ran(extra: str = "") -> bool:
        (tmp_path / "recipe.toml").write_text(text + extra)
        before = len(runs)
        run_step(read_recipe(tmp_path / "recipe.toml", {})[0], silent)
        return len(runs) > before

    assert ran()
    assert not ran()
    assert not ran("backbone = ''\n"), "a default that is written out changes nothing"
    for name in ("table.csv", "features/a.h5", "model/model.json", "model/predictions/predictions.csv"):
        (tmp_path / name).write_text(f"{name} changed")
        assert ran(), name
        assert not ran(), name
    (tmp_path / "model/predictions/predictions.json").unlink()
    assert ran()
    assert ran('splits = ["test"]\n')
    monkeypatch.setattr("histotl.__version__", "99")
    assert ran('splits = ["test"]\n')


def test_train_asks_for_tasks_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "t.csv", "f", str(tmp_path / "m")]
    assert call(argv) == 2
    assert "no task is given" in capsys.readouterr().err
    assert call([*argv, "--task", "x: regression", "--tasks", "t.toml"]) == 2
    assert "use one of the two" in capsys.readouterr().err


def test_tile_scores_can_be_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["predict", "no-model", "no-features", "out", "--no-tile-scores"]) == 3
    assert "no model folder" in capsys.readouterr().err
