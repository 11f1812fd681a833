"""Where the time went, and what the run says of it."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from histotl.cli.main import call
from histotl.embed._batch_size import BatchTuner
from histotl.embed.engine import embed_slides
from histotl.embed.telemetry import STAGES, Clock, Telemetry


def told(**changes: object) -> Telemetry:
    facts: dict[str, object] = {
        "seconds": {"forward": 9.0, "decode": 1.0},
        "wall_s": 10.0,
        "n_tiles": 1000,
        "device": "cpu",
        "device_busy": 0.9,
        "batch_size": 16,
        "readers": 1,
        "planners": 1,
        "compute_threads": 1,
    }
    return Telemetry(**{**facts, **changes})


def test_the_bottleneck_is_named_with_a_flag():
    assert told().bottleneck.startswith("the network: cpu was busy 90%")
    assert "--compile" in told().bottleneck
    assert "--runtime" not in told(device="cuda:0").bottleneck
    decoding = told(seconds={"wait": 6.0, "decode": 9.0, "forward": 3.0})
    assert decoding.bottleneck.startswith("decoding: the network waited 60%")
    assert "--workers 2" in decoding.bottleneck
    assert told(seconds={"wait": 6.0, "read": 9.0, "forward": 3.0}).bottleneck.startswith("reading the files")
    assert told(seconds={"wait": 6.0, "plan": 9.0, "decode": 1.0}).bottleneck.startswith("finding tissue")
    slow = told(seconds={"wait": 6.0, "decode": 9.0}, fallback_tiles=10, jpeg_tiles=0)
    assert slow.bottleneck.startswith("decoding through the slide library")
    assert told(seconds={"transform": 6.0, "forward": 3.0}).bottleneck.startswith("stain normalisation: 60%")
    assert told(seconds={"build": 8.0, "wait": 2.0}).bottleneck.startswith("getting the network ready: 80%")
    assert told(seconds={"build": 2.0, "forward": 7.0}).bottleneck.startswith("the network: cpu")
    assert told(n_tiles=0).bottleneck == ""


def test_shares_are_of_all_forward_passes():
    two = told(forwards=2, seconds={"wait": 12.0, "decode": 9.0, "forward": 8.0})
    assert two.bottleneck.startswith("decoding: the network waited 60%")
    assert told(forwards=2, seconds={"wait": 1.0, "transform": 12.0}).bottleneck.startswith("stain normalisation: 60%")
    assert two.line == (
        "cpu busy 90%, 2 forward passes side by side; of the wall time: decode 90%, forward 80%, wait 120%"
    )


def test_a_cpu_that_works_longer_than_it_waits_is_the_bottleneck():
    seconds = {"wait": 2.0, "plan": 9.0, "forward": 7.5}
    assert told(seconds=seconds).bottleneck.startswith("the network")
    assert told(seconds=seconds, device="cuda:0").bottleneck.startswith("finding tissue")


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_flags_that_would_be_refused_are_not_named(device):
    said = told(device=device, convertible=False).bottleneck
    assert not any(flag in said for flag in ("--runtime", "--compile", "--precision"))
    assert "a smaller --backbone" in said


def test_rate_and_line():
    assert told().tiles_per_s == 100
    assert told().line == "cpu busy 90%; of the wall time: decode 10%, forward 90%"


def test_the_clock_adds_over_threads():
    clock = Clock()

    def work() -> None:
        with clock.stage("decode"):
            time.sleep(0.02)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(work)
    assert clock.seconds["decode"] >= 0.08
    assert clock.seconds.keys() == set(STAGES)


def test_a_failing_stage_is_counted_too():
    clock = Clock()
    with pytest.raises(ValueError, match="invalid literal"), clock.stage("read"):
        int("no", base=time.sleep(0.01) or 10)
    assert clock.seconds["read"] >= 0.01


def test_a_run_tells_where_its_time_went(slides, tmp_path, tiling, config):
    summary = embed_slides(slides, tmp_path / "out", tiling=tiling, config=config)
    run = summary.telemetry
    assert run is not None
    assert run.n_tiles == summary.n_tiles
    assert 0 < run.wall_s <= summary.seconds
    for stage in ("build", "plan", "read", "decode", "forward", "write"):
        assert run.seconds[stage] > 0, stage
    assert 0 < run.device_busy <= 1
    assert run.jpeg_tiles > 0
    assert run.fallback_tiles == 0
    assert run.mbytes_read > 0
    assert run.bottleneck
    again = embed_slides(slides, tmp_path / "out", tiling=tiling, config=config)
    assert again.telemetry is None


def test_the_command_line_says_it(slides, tmp_path, capsys):
    argv = ["embed", slides, tmp_path / "out", "--tile-px", "64", "--mpp", "1", "--backbone", "color_stats", "--quiet"]

    def run(*more: str) -> str:
        assert call([*map(str, argv), *more]) == 0
        return capsys.readouterr().out

    text = " ".join(run().split())
    assert "cpu busy" in text
    assert "bottleneck: " in text
    seen = json.loads(run("--overwrite", "--json"))["telemetry"]
    assert seen["tiles_per_s"] > 0
    assert seen["seconds"]["decode"] > 0
    assert seen["bottleneck"]


def run_tuner(rates: dict[int, float]) -> int:
    tuner = BatchTuner(tuple(rates), tiles=32, pause=128)
    for _ in range(200):
        tuner.observe(tuner.batch_size, tuner.batch_size / rates[tuner.batch_size])
    return tuner.batch_size


def test_the_fastest_batch_size_is_found():
    assert run_tuner({8: 100, 16: 110, 32: 120, 64: 300}) == 64
    assert run_tuner({8: 100, 16: 150, 32: 120, 64: 110}) == 16
    assert run_tuner({8: 300, 16: 150, 32: 120, 64: 110}) == 8
    assert run_tuner({8: 300, 16: 100, 32: 120, 64: 110}) == 32  # a hill further away is not looked for
    assert run_tuner({4: 100}) == 4
    assert run_tuner({4: 100, 8: 90}) == 4


def test_a_short_run_tries_no_other_batch_size():
    tuner, tiles = BatchTuner((16, 32), tiles=32, pause=640), 0
    while tuner.batch_size == 32:
        tuner.observe(32, 1.0)
        tiles += 32
    assert tiles == 640


@pytest.mark.parametrize(("share", "sizes"), [(0.9, {16, 32}), (1.1, {32})])
def test_a_network_that_mostly_waits_tries_no_other_size(share: float, sizes: set[int]) -> None:
    """A larger batch would make nothing faster, and its memory would be the most of the run."""
    waited, seen = [0.0], set()
    tuner = BatchTuner((16, 32), tiles=32, pause=128, waited=lambda: waited[0])
    for _ in range(50):
        seen.add(tuner.batch_size)
        waited[0] += share
        tuner.observe(tuner.batch_size, 1.0)
    assert seen == sizes


def test_a_size_is_compared_with_the_batches_just_before_it():
    """A machine that slows down in the course of a run does not make the size that was measured first the best."""
    tuner, slowdown = BatchTuner((16, 32), tiles=64, pause=128), 1.0
    for _ in range(200):
        slowdown *= 1.01
        tuner.observe(tuner.batch_size, slowdown * tuner.batch_size / {16: 130, 32: 100}[tuner.batch_size])
    assert tuner.batch_size == 16


@pytest.mark.parametrize("slow", [range(5, 9), range(9, 14), range(13, 18)])
def test_a_slow_moment_decides_nothing(slow: range) -> None:
    """What slows the batches before a trial, some of it, or those after it, for as long as each of them takes."""
    tuner = BatchTuner((16, 32), tiles=128, pause=256)
    for batch in range(200):
        seconds = tuner.batch_size / {16: 90, 32: 100}[tuner.batch_size]
        tuner.observe(tuner.batch_size, 3 * seconds if batch in slow else seconds)
    assert tuner.batch_size == 32


def test_the_first_batch_of_a_size_does_not_count():
    tuner, before = BatchTuner((16, 32), tiles=64, pause=128), 32
    for _ in range(200):
        is_first, before = tuner.batch_size != before, tuner.batch_size
        tuner.observe(tuner.batch_size, 100.0 if is_first else tuner.batch_size / {16: 130, 32: 100}[tuner.batch_size])
    assert tuner.batch_size == 16


def test_small_last_batches_say_nothing_about_a_size():
    tuner = BatchTuner((8, 16), tiles=8)
    for _ in range(50):
        tuner.observe(3, 100.0)
    assert tuner.batch_size == 16
