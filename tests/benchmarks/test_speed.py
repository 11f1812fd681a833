"""The benchmarks run: every case once, on tiny inputs. Nothing is said about times, which belong to no test."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from benchmarks.speed.__main__ import main
from benchmarks.speed.cases import KEYS, chosen, run
from benchmarks.speed.harness import Case, Timing, measure, save, table
from benchmarks.speed.inputs import TINY, Inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("bench"), TINY)


@pytest.mark.parametrize("key", KEYS)
def test_case_runs(key: str, inputs: Inputs) -> None:
    timing = run(key, inputs, rounds=1)
    assert timing.key == key
    assert timing.rounds == 1
    assert timing.ours_s > 0
    assert timing.reference_s > 0
    assert math.isclose(timing.ratio, timing.ours_s / timing.reference_s)


def test_sides_alternate_and_the_warm_up_does_not_count() -> None:
    calls: list[str] = []
    case = Case(name="a", against="b", ours=lambda: calls.append("a"), reference=lambda: calls.append("b"))
    timing = measure(case, rounds=3)
    assert calls == ["a", "b"] * 4
    assert timing.rounds == 3
    assert timing.ratio_low <= timing.ratio <= timing.ratio_high


def test_sides_that_differ_are_refused() -> None:
    case = Case(name="a", against="b", ours=lambda: 1, reference=lambda: 2, same=lambda a, b: a == b)
    with pytest.raises(ValueError, match="same"):
        measure(case, rounds=1)


def _timing(ratio: float, goal: float | None) -> Timing:
    numbers = {"ours_s": ratio, "reference_s": 1.0, "ratio": ratio, "ratio_low": ratio, "ratio_high": ratio}
    return Timing(key="k", name="n", against="x", **numbers, goal=goal, rate="", note="", threads=1, rounds=1)


def test_table_shows_missed_goals() -> None:
    rows = table([_timing(2.0, 1.5), _timing(1.0, 1.5), _timing(1.0, None)]).splitlines()[2:]
    assert ["missed" in row for row in rows] == [True, False, False]
    assert ["met" in row for row in rows] == [False, True, False]


def test_results_name_no_place(tmp_path: Path) -> None:
    save([_timing(1.0, None)], tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    assert json.loads(text)["timings"][0]["ratio"] == 1.0
    assert os.uname().nodename not in text
    assert str(Path.cwd()) not in text


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.json"
    assert main(["--only", "pixels/*", "--rounds", "1", "--tiny", "--out", str(out)]) == 0
    assert [t["key"] for t in json.loads(out.read_text(encoding="utf-8"))["timings"]] == chosen("pixels/*")
    assert "| what |" in capsys.readouterr().out
    assert main(["--only", "nothing"]) == 2
