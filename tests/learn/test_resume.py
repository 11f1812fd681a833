"""An interrupted training goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from histotl.core.errors import CorruptFileError
from histotl.core.progress import Step
from histotl.learn import fit as fit_module
from histotl.learn.config import TrainConfig
from histotl.learn.model import load_model
from histotl.learn.resume import FOLDER, Done, Progress, digest
from histotl.learn.task import Task
from histotl.learn.train import TrainResult, train

LESION = (Task(name="lesion", kind="binary", classes=("no", "yes")),)

KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have switched it off
from histotl.learn.config import TrainConfig
from histotl.learn.train import train

def report(step):
    if step.done == 2:
        os.kill(os.getpid(), signal.{signal})

tasks = ["lesion: binary(classes=('no', 'yes'))"]
train({table!r}, {features!r}, {out!r}, tasks=tasks, config={config!r}, report=report)
"""


@pytest.fixture
def settings(quick: TrainConfig) -> TrainConfig:
    return replace(quick, members=3, learning_rates=(0.01, 0.003), dropout=0.2, ood=())


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """Every run that is trained in this process, as (seed, learning rate)."""
    runs, real = [], fit_module.train_one

    def count(*args: object, rate: float, seed: int, **rest: object) -> object:
        runs.append((seed, rate))
        return real(*args, rate=rate, seed=seed, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(fit_module, "train_one", count)
    return runs


def learn(cohort: tuple[pd.DataFrame, Path], out: Path, config: TrainConfig, **more: object) -> TrainResult:
    table = out.parent / "table.csv"
    cohort[0].to_csv(table, index=False)
    return train(table, cohort[1], out, tasks=LESION, config=config, **more)  # type: ignore[arg-type]


def states(folder: Path) -> list[torch.Tensor]:
    return [value for member in load_model(folder).members for value in member.state_dict().values()]


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_killed_training_goes_on(
    slide_cohort: tuple[pd.DataFrame, Path],
    settings: TrainConfig,
    counted: list[tuple[int, float]],
    tmp_path: Path,
    how: str,
) -> None:
    table, out = tmp_path / "table.csv", tmp_path / "out"
    slide_cohort[0].to_csv(table, index=False)
    code = KILLED.format(signal=how, table=str(table), features=str(slide_cohort[1]), out=str(out), config=settings)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -getattr(signal, how), done.stderr
    assert len(list((out / FOLDER).glob("*/*.safetensors"))) == 2
    assert not (out / "model.json").exists()
    told: list[Step] = []
    again = learn(slide_cohort, out, settings, report=told.append)
    assert len(counted) == 2
    assert sum("of the start before" in step.message for step in told) == 2
    assert not (out / FOLDER).exists()
    whole = learn(slide_cohort, tmp_path / "whole", settings)
    assert len(counted) == 2 + 4
    assert all(torch.equal(a, b) for a, b in zip(states(out), states(tmp_path / "whole"), strict=True))
    assert (again.learning_rate, again.validation) == (whole.learning_rate, whole.validation)


def test_other_labels_or_settings_start_anew(
    slide_cohort: tuple[pd.DataFrame, Path],
    settings: TrainConfig,
    counted: list[tuple[int, float]],
    tmp_path: Path,
) -> None:
    class Interrupted(Exception):  # noqa: N818 - nothing went wrong
        pass

    def stop(step: Step) -> None:
        if step.done == 2:
            raise Interrupted

    out, table = tmp_path / "out", slide_cohort[0]
    flipped = table.assign(lesion=["yes", *table["lesion"][1:]])
    trials = [
        (table, settings),
        (table, replace(settings, memory_gb=0.5)),  # changes nothing about the networks
        (flipped, settings),
        (table, replace(settings, weight_decay=0.1)),
    ]
    trained = []
    for frame, config in trials:
        counted.clear()
        with pytest.raises(Interrupted):
            learn((frame, slide_cohort[1]), out, config, report=stop)
        trained.append(len(counted))
        assert len(list((out / FOLDER).iterdir())) == 1
    assert trained == [2, 0, 2, 2]


def test_what_is_kept_comes_back_and_damage_is_told(tmp_path: Path) -> None:
    progress = Progress(tmp_path, "abc")
    assert progress.load(0, 0.001) is None
    done = Done(state={"w": torch.randn(3, 2).T}, loss=0.1 + 0.2, history=[{"step": 1, "val": 0.5}])
    progress.save(0, 0.001, done)
    found = Progress(tmp_path, "abc").load(0, 0.001)
    assert found is not None
    assert torch.equal(found.state["w"], done.state["w"])
    assert (found.loss, found.history) == (done.loss, done.history)
    assert Progress(tmp_path, "abc").load(1, 0.001) is None
    path = next((tmp_path / FOLDER).glob("*/*"))
    os.truncate(path, 30)
    with pytest.raises(CorruptFileError) as caught:
        progress.load(0, 0.001)
    assert FOLDER in caught.value.hint
    assert Progress(tmp_path, "other").load(0, 0.001) is None
    assert not path.exists()
    progress.clear()
    assert not (tmp_path / FOLDER).exists()


def test_the_digest_sees_every_number_and_shape() -> None:
    one = digest({"a": 1}, [np.arange(4)])
    others = [
        digest({"a": 2}, [np.arange(4)]),
        digest({"a": 1}, [np.arange(4).reshape(2, 2)]),
        digest({"a": 1}, [np.arange(4.0)]),
        digest({"a": 1}, [np.array([0, 1, 2, 4])]),
    ]
    assert one == digest({"a": 1}, [np.arange(4)])
    assert len({one, *others}) == 5


def test_patience_ends_training_early(labelled: Callable[..., object], quick: TrainConfig) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 8)), rng.integers(0, 2, 60).astype(float)
    task = Task(name="yes", kind="binary", classes=("n", "y"))
    train_set, val_set = labelled(x[:30], {"yes": y[:30]}), labelled(x[30:], {"yes": y[30:]})
    # Random labels: what fits them better and better is worse and worse on others.
    config = replace(quick, min_steps=400, max_steps=400, patience=3)
    stopped = fit_module.fit(train_set, val_set, tasks=[task], config=config)  # type: ignore[arg-type]
    whole = fit_module.fit(train_set, val_set, tasks=[task], config=replace(config, patience=0))  # type: ignore[arg-type]
    assert len(stopped.history) < len(whole.history) == 20
    assert stopped.history == whole.history[: len(stopped.history)]
    assert stopped.tried == whole.tried
