"""The benchmarks run: every case once, on tiny inputs. Nothing is said about times, which belong to no test."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
import pytest
import simplejpeg

from benchmarks.speed import peers
from benchmarks.speed.__main__ import main
from benchmarks.speed.cases import KEYS, chosen, run
from benchmarks.speed.harness import Case, Figure, Measured, NotMeasured, Timing, measure
from benchmarks.speed.inputs import TINY, Inputs, JpegTiles, real_slide
from benchmarks.speed.peers import start, start_library
from benchmarks.speed.results import save, table
from benchmarks.speed.workers import Worker

PEERS = os.environ.get("HISTOTL_PEERS")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("bench"), TINY, peers=None if PEERS is None else Path(PEERS))


SLOW = ("memory/", "embed/")


@pytest.mark.parametrize(
    "key", [pytest.param(key, marks=pytest.mark.slow) if key.startswith(SLOW) else key for key in KEYS]
)
def test_case_runs(key: str, inputs: Inputs) -> None:
    try:
        timing = run(key, inputs, rounds=1)
    except NotMeasured as reason:
        pytest.skip(f"NOT MEASURED: {reason}")
    assert timing.key == key
    assert timing.rounds == 1
    assert timing.ours > 0
    assert timing.reference > 0
    assert math.isclose(timing.ratio, timing.ours / timing.reference)
    assert all(math.isfinite(said.value) for said in timing.figures)


def test_every_tile_of_the_file_is_decoded_once(inputs: Inputs) -> None:
    for key in ("read/aligned-256", "read/offset-256", "read/unaligned-224", "read/half-scale"):
        decoded = [said for said in run(key, inputs, rounds=1).figures if "decoded" in said.text]
        assert [said.value for said in decoded] == [1.0]


def test_sides_alternate_and_the_warm_up_does_not_count() -> None:
    calls: list[str] = []
    closed: list[str] = []
    case = Case(
        name="a",
        against="b",
        ours=lambda: calls.append("a"),
        reference=lambda: calls.append("b"),
        close=lambda: closed.append("c"),
    )
    timing = measure(case, rounds=3)
    assert calls == ["a", "b"] * 4
    assert closed == ["c"]
    assert timing.rounds == 3
    assert timing.ratio_low <= timing.ratio <= timing.ratio_high


def test_a_side_may_measure_itself() -> None:
    theirs = iter([100.0, 1.0, 2.0, 4.0])
    case = Case(
        name="a",
        against="b",
        ours=lambda: Measured(value=6.0, cpu=3.0, result="x"),
        reference=lambda: Measured(value=next(theirs), cpu=1.0, result="x"),
        same=lambda a, b: a == b == "x",
        goal=3.0,
        figures=(
            Figure(text="{}", of=lambda s: s.reference, goal=2.0, more=True),
            Figure(text="{}", of=lambda s: s.ours_cpu, goal=2.0),
        ),
    )
    timing = measure(case, rounds=3)
    assert (timing.ratio, timing.ratio_low, timing.ratio_high) == (3.0, 1.5, 6.0)
    assert (timing.ours, timing.reference, timing.ours_cpu_s, timing.met) == (6.0, 2.0, 3.0, True)
    assert [said.met for said in timing.figures] == [True, False]


def test_sides_that_differ_are_refused_and_what_was_started_ends() -> None:
    closed: list[str] = []
    case = Case(
        name="a",
        against="b",
        ours=lambda: 1,
        reference=lambda: 2,
        same=lambda a, b: a == b,
        close=lambda: closed.append("c"),
    )
    with pytest.raises(ValueError, match="same"):
        measure(case, rounds=1)
    assert closed == ["c"]


def _timing(ratio: float, goal: float | None) -> Timing:
    case = Case(
        name="n",
        against="x",
        ours=lambda: Measured(value=ratio),
        reference=lambda: Measured(value=1.0),
        goal=goal,
    )
    return measure(case, rounds=1, key="k")


def test_table_shows_missed_goals_and_what_was_not_measured() -> None:
    text = table([_timing(2.0, 1.5), _timing(1.0, 1.5), _timing(1.0, None)], {"gpu/x": "needs a GPU"})
    rows = text.splitlines()[2:5]
    assert ["missed" in row for row in rows] == [True, False, False]
    assert ["met" in row for row in rows] == [False, True, False]
    assert "`gpu/x`: needs a GPU" in text
    said = dataclasses.replace(_timing(1.0, None), figures=[])
    assert "Not measured" not in table([said], {})


def test_results_name_no_place(tmp_path: Path) -> None:
    save([_timing(1.0, None)], tmp_path / "results.json", not_measured={"a": "b"})
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    content = json.loads(text)
    assert content["timings"][0]["ratio"] == 1.0
    assert content["not_measured"] == {"a": "b"}
    assert os.uname().nodename not in text
    assert str(Path.cwd()) not in text


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.json"
    assert main(["--only", "pixels/*", "--rounds", "1", "--tiny", "--out", str(out)]) == 0
    assert [t["key"] for t in json.loads(out.read_text(encoding="utf-8"))["timings"]] == chosen("pixels/*")
    assert "| what |" in capsys.readouterr().out
    assert main(["--only", "nothing"]) == 2


def test_large_slide_is_what_it_says(inputs: Inputs) -> None:
    """Levels of one scene, half tissue, pixel size, and the tiles of the file as whole JPEG streams."""
    side = TINY.huge_px
    with openslide.OpenSlide(inputs.huge) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-x"]) == 0.5
        assert slide.level_dimensions == ((side, side), (side // 4, side // 4), (side // 16, side // 16))
        views = [_level(slide, level) for level in range(slide.level_count)]
        tissue = (np.asarray(slide.read_region((0, 0), 1, (side // 4, side // 4)))[..., 1] < 225).mean()
    assert 0.3 < tissue < 0.6
    for view in views[1:]:
        assert np.abs(view - views[0]).mean() < 5
    tile = JpegTiles(inputs.huge).fetch([3])[0]
    assert simplejpeg.decode_jpeg(tile).shape == (256, 256, 3)


def _level(slide: openslide.OpenSlide, level: int) -> np.ndarray:
    image = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"), float)
    part = image.shape[0] // 64
    return image.reshape(64, part, 64, part, 3).mean(axis=(1, 3))


def test_jpeg_tiles_under_squares(inputs: Inputs) -> None:
    tiles = JpegTiles(inputs.huge)
    corners = np.array([[0, 0], [200, 256]])
    columns = TINY.huge_px // 256
    assert tiles.under(corners, (224.0, 224.0)) == [0, columns, columns + 1]
    assert len(tiles.spread(tiles.under(corners, (224.0, 224.0)), 2 * 256 * 256)) == 2


def test_peers_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match="--peers"):
        start(Inputs(tmp_path, TINY), "CLAM")
    with pytest.raises(NotMeasured, match="CLAM"):
        start(Inputs(tmp_path, TINY, peers=tmp_path), "CLAM")
    with pytest.raises(NotMeasured, match="pip install cucim-cu12"):
        start_library(Inputs(tmp_path, TINY, peers=_empty(tmp_path)), "cucim", tmp_path / "a.svs")


def _empty(folder: Path) -> Path:
    """A peers' folder whose Python has nothing installed."""
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    python.chmod(0o755)
    return folder


def test_tiles_of_another_library_are_compared(inputs: Inputs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A library that reads a neighbouring region is found out; one that reads the right one is timed."""
    monkeypatch.setattr(peers, "ROOT", tmp_path)  # on the path of the process, which works in the real root
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    library = tmp_path / "tiffslide.py"
    library.write_text(_LIBRARY.format(shift=0))
    assert run("read/tiffslide", inputs, rounds=1).reference > 0
    library.write_text(_LIBRARY.format(shift=1))
    with pytest.raises(ValueError, match="do not give the same"):
        run("read/tiffslide", inputs, rounds=1)


_LIBRARY = """
import numpy, openslide
class TiffSlide:
    def __init__(self, path):
        self.slide = openslide.OpenSlide(path)
    def read_region(self, corner, level, size, as_array):
        corner = corner[0] + {shift}, corner[1]
        return numpy.asarray(self.slide.read_region(corner, level, size).convert("RGB"))
"""


def test_real_tissue_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HISTOTL_REAL_DATA", raising=False)
    assert real_slide() is None
    monkeypatch.setenv("HISTOTL_REAL_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        real_slide()


_ECHO = """
from benchmarks.speed.workers import serve
def answer(question):
    print("this goes elsewhere")
    return {"twice": 2 * question["number"]}
serve(answer)
"""


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Worker]:
    script = tmp_path / "echo.py"
    script.write_text(_ECHO, encoding="utf-8")
    worker = Worker([sys.executable, str(script)], {"PYTHONPATH": str(Path(__file__).parents[2])})
    yield worker
    worker.close()


def test_worker_answers_and_tells_what_failed(echo: Worker) -> None:
    assert echo.call(number=4) == {"twice": 8}
    with pytest.raises(RuntimeError, match="KeyError"):
        echo.call(nothing=1)
    assert echo.call(number=1) == {"twice": 2}


def test_worker_that_ends_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="status 3"):
        Worker([sys.executable, "-c", "raise SystemExit(3)"])
