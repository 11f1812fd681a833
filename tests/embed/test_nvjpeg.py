"""JPEG tiles decoded in batches: torchvision on the CPU stands in for nvJPEG, whose code path is the same."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch

from histotl.core.errors import MissingDependencyError, SetupError, UsageError
from histotl.core.values import TileGrid, TileSpec
from histotl.embed import _decoder, _nvjpeg, engine
from histotl.embed._decoder import Comparison, DecoderChoice, Sample, compare, sample_of
from histotl.embed._nvjpeg import TorchvisionDecoder
from histotl.embed.engine import embed_slides
from histotl.embed.telemetry import Telemetry
from histotl.store.embeddings import open_embeddings
from histotl.wsi.readers.base import BatchDecoder
from histotl.wsi.slide import Slide, open_slide
from histotl.wsi.tiling import plan_tiles

# torchvision's decoders move to a package of their own; what they do until then does not change.
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

Pixels = npt.NDArray[np.uint8]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Altered:
    """A batch decoder on the CPU whose pixels are off by some levels, and which refuses every n-th tile."""

    name = "nvjpeg"

    def __init__(self, *, off: int = 0, refuse_every: int = 0) -> None:
        self._real, self._off, self._every = TorchvisionDecoder(CPU), off, refuse_every
        self.seen: Counter[bytes] = Counter()

    def decode(self, streams: Sequence[bytearray], outs: Sequence[Pixels]) -> list[bool]:
        self.seen.update(bytes(stream) for stream in streams)
        taken = self._real.decode(streams, outs)
        for out in outs:
            out[:] = np.where(out > 127, out - self._off, out + self._off)
        return [done and not (self._every and number % self._every == 0) for number, done in enumerate(taken, start=1)]


def ticking(*steps: float) -> Callable[[], float]:
    """A timer that goes on by some seconds between two calls, in turns."""
    now, going_on = 0.0, itertools.cycle(steps)

    def read() -> float:
        nonlocal now
        now += next(going_on)
        return now

    return read


def gpu_faster() -> Callable[[], float]:
    """Begin and end of the CPU, begin and end of the GPU, and so on."""
    return ticking(0, 3, 0, 1)


@pytest.fixture
def slide(slides: Path) -> Iterator[Slide]:
    with open_slide(slides / "a.tiff") as opened:
        yield opened


def grid_of(slide: Slide) -> TileGrid:
    return plan_tiles(slide.info, TileSpec(tile_px=64, mpp=1.0, min_tissue=0.0))


def sample_from(slide: Slide) -> Sample:
    level = slide.tiled(0)
    assert level is not None
    sample = sample_of(level, slide.info, grid_of(slide))
    assert sample is not None
    return sample


def use(monkeypatch: pytest.MonkeyPatch, decoder: BatchDecoder, *, asked: str = "nvjpeg") -> None:
    """Have the engine believe that the device of its decoders is a GPU, and that this is the decoder there."""

    def choice(_: str, __: torch.device, threads: int) -> DecoderChoice:
        return DecoderChoice(asked, GPU, threads, make=lambda device: decoder, timer=gpu_faster())

    monkeypatch.setattr("histotl.embed.engine.DecoderChoice", choice)


def features(out: Path) -> dict[str, npt.NDArray[np.floating]]:
    return {file.stem: open_embeddings(file).read() for file in sorted(out.rglob("features_*/*.h5"))}


# --- the decoder -----------------------------------------------------------------------------------------------------


def test_the_same_pixels_as_the_level(slide: Slide) -> None:
    sample = sample_from(slide)
    outs = [np.zeros_like(pixels) for pixels in sample.pixels]
    assert TorchvisionDecoder(CPU).decode(sample.streams, outs) == [True] * len(outs)
    assert all(np.array_equal(out, pixels) for out, pixels in zip(outs, sample.pixels, strict=True))


def test_large_batches_go_in_parts(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = sample_from(slide)
    monkeypatch.setattr(_nvjpeg, "_STAGED_BYTES", 2 * sample.pixels[0].nbytes)
    decoder, sizes = TorchvisionDecoder(CPU), []
    original = decoder._decode
    monkeypatch.setattr(decoder, "_decode", lambda coded: [sizes.append(len(coded)), original(coded)][1])
    outs = [np.zeros_like(pixels) for pixels in sample.pixels[:5]]
    assert decoder.decode(sample.streams[:5], outs) == [True] * 5
    assert sizes == [2, 2, 1]
    assert all(np.array_equal(out, pixels) for out, pixels in zip(outs, sample.pixels, strict=False))
    assert decoder.decode([], []) == []


def test_threads_do_not_mix_up_their_tiles(slide: Slide) -> None:
    sample, decoder = sample_from(slide), TorchvisionDecoder(CPU)

    def one(start: int) -> None:
        order = [(start + step) % len(sample.tiles) for step in range(4)]
        outs = [np.zeros_like(sample.pixels[0]) for _ in order]
        assert all(decoder.decode([sample.streams[number] for number in order], outs))
        for number, out in zip(order, outs, strict=True):
            assert np.array_equal(out, sample.pixels[number])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(40)))


def test_tiles_of_another_size_are_left(slide: Slide) -> None:
    sample = sample_from(slide)
    outs = [np.zeros_like(pixels) for pixels in sample.pixels[:3]]
    streams = [sample.streams[0], _nvjpeg._small_jpeg(), sample.streams[2]]
    assert TorchvisionDecoder(CPU).decode(streams, outs) == [True, False, True]
    assert np.array_equal(outs[2], sample.pixels[2])
    assert not outs[1].any()


def test_a_batch_that_torchvision_gives_up_on_is_left_and_told_once(
    slide: Slide, caplog: pytest.LogCaptureFixture
) -> None:
    sample, decoder = sample_from(slide), TorchvisionDecoder(CPU)
    outs = [np.zeros_like(pixels) for pixels in sample.pixels[:3]]
    for _ in range(3):
        with caplog.at_level(logging.INFO):
            assert decoder.decode([*sample.streams[:2], bytearray(b"no JPEG")], outs) == [False] * 3
    assert len([record for record in caplog.records if "refuses 3 tiles" in record.message]) == 1


def test_without_torchvision_the_cure_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.io", None)
    with pytest.raises(MissingDependencyError, match="torchvision cannot decode JPEG") as error:
        TorchvisionDecoder(CPU)
    assert "torchvision" in error.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_where_torchvision_has_no_gpu_the_cure_is_said() -> None:
    with pytest.raises(SetupError, match="cannot decode JPEG on cuda:0") as error:
        TorchvisionDecoder(GPU)
    assert "--decode" in error.value.hint


# --- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["auto", "cpu"])
def test_on_a_cpu_there_is_nothing_to_choose(asked: str, slide: Slide) -> None:
    def make(device: torch.device) -> BatchDecoder:
        raise AssertionError

    choice = DecoderChoice(asked, CPU, 2, make=make, timer=make)
    assert choice.decoder_for(slide, grid_of(slide)) is None
    assert slide._backend is not None, "nothing was closed"
    assert choice.name == "cpu"
    assert DecoderChoice("cpu", GPU, 2, make=make).decoder_for(slide, grid_of(slide)) is None


def test_nvjpeg_without_a_gpu_is_refused_before_any_slide(slides, tmp_path, tiling, config, monkeypatch) -> None:
    monkeypatch.setattr("histotl.embed.engine.open_entry", pytest.fail)
    with pytest.raises(UsageError, match="--decode nvjpeg needs a GPU, and the network runs on cpu") as error:
        embed_slides(slides, tmp_path / "out", tiling=tiling, config=replace(config, decode="nvjpeg"))
    assert "--device cuda" in error.value.hint
    assert not (tmp_path / "out").exists()


def test_a_decoder_that_cannot_be_had_fails_only_who_asked_for_it(
    slide: Slide, caplog: pytest.LogCaptureFixture
) -> None:
    def make(device: torch.device) -> BatchDecoder:
        raise SetupError("no nvJPEG here", hint="install it")

    with pytest.raises(SetupError, match="no nvJPEG here"):
        DecoderChoice("nvjpeg", GPU, 2, make=make)
    with caplog.at_level(logging.INFO):
        choice = DecoderChoice("auto", GPU, 2, make=make)
    assert choice.decoder_for(slide, grid_of(slide)) is None
    assert "decoded on the CPU: no nvJPEG here" in caplog.text


@pytest.mark.parametrize(
    ("steps", "chosen"), [((0, 3, 0, 1), "nvjpeg"), ((0, 1, 0, 3), "cpu"), ((0, 1.1, 0, 1), "cpu")]
)
def test_the_faster_one_is_chosen(
    slide: Slide, steps: tuple[float, ...], chosen: str, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = Altered()
    choice = DecoderChoice("auto", GPU, 2, make=lambda device: decoder, timer=ticking(*steps))
    with caplog.at_level(logging.INFO):
        found = choice.decoder_for(slide, grid_of(slide))
    assert found is (decoder if chosen == "nvjpeg" else None)
    assert choice.name == chosen
    assert f"{steps[1] / steps[3]:.2f} times as fast as the CPU, and pixels differ by 0.000 levels" in caplog.text
    calls = decoder.seen.total()
    assert choice.decoder_for(slide, grid_of(slide)) is found
    assert decoder.seen.total() == calls, "measured once a run"


@pytest.mark.parametrize(("off", "refuse_every"), [(1, 0), (0, 7)])
def test_other_pixels_or_refused_tiles_speak_against_it(
    slide: Slide, off: int, refuse_every: int, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = Altered(off=off, refuse_every=refuse_every)
    choice = DecoderChoice("auto", GPU, 1, make=lambda device: decoder, timer=gpu_faster())
    with caplog.at_level(logging.INFO):
        assert choice.decoder_for(slide, grid_of(slide)) is None
    assert choice.name == "cpu"
    assert ("differ by more than 0.5 levels" if off else "of the tiles are not for it") in caplog.text
    forced = DecoderChoice("nvjpeg", GPU, 1, make=lambda device: decoder, timer=gpu_faster())
    caplog.clear()
    with caplog.at_level(logging.WARNING):  # whatever the command line left behind in this process
        assert forced.decoder_for(slide, grid_of(slide)) is decoder, "who asks for it gets it, with a warning"
    assert [record.levelname for record in caplog.records if record.name == _decoder.__name__] == ["WARNING"]


def test_differences_are_those_of_the_pixels(slide: Slide) -> None:
    found = compare(sample_from(slide), Altered(off=3), 2, timer=ticking(0, 4, 0, 2))
    assert found == Comparison(cpu_s=4, gpu_s=2, mean_difference=3.0, most_difference=3)


def test_planners_measure_once(slides: Path) -> None:
    decoder = Altered()
    choice = DecoderChoice("auto", GPU, 1, make=lambda device: decoder, timer=gpu_faster())

    def one(name: str) -> BatchDecoder | None:
        with open_slide(slides / f"{name}.tiff") as opened:
            return choice.decoder_for(opened, grid_of(opened))

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(one, "abc")) == [decoder] * 3
    assert len(set(decoder.seen.values())) == 1, "only tiles of one slide were measured"


def test_a_damaged_slide_does_not_settle_it(slides: Path) -> None:
    zero_tiles(slides / "b.tiff", slice(None), keep=700)
    decoder = Altered()
    choice = DecoderChoice("auto", GPU, 1, make=lambda device: decoder, timer=gpu_faster())
    with open_slide(slides / "b.tiff") as bad, open_slide(slides / "a.tiff") as good:
        assert choice.decoder_for(bad, grid_of(bad)) is None
        assert not decoder.seen
        assert choice.decoder_for(good, grid_of(good)) is decoder
        assert choice.decoder_for(bad, grid_of(bad)) is decoder


def test_slides_without_jpeg_do_not_settle_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tiff", image, tile=(128, 128), photometric="rgb", compression="deflate")
    decoder = Altered()
    choice = DecoderChoice("auto", GPU, 1, make=lambda device: decoder, timer=gpu_faster())
    with open_slide(tmp_path / "a.tiff", mpp=1.0) as slide:
        assert choice.decoder_for(slide, grid_of(slide)) is None
    assert not decoder.seen


# --- whole runs ------------------------------------------------------------------------------------------------------


def zero_tiles(path: Path, which: slice, *, keep: int) -> int:
    """Overwrite level-0 JPEG tiles with zeros, after some bytes; the last two bytes stay. Returns how many."""
    with tifffile.TiffFile(path) as file:
        places = list(zip(file.pages[0].dataoffsets, file.pages[0].databytecounts, strict=True))[which]
    with path.open("r+b") as raw:
        for offset, count in places:
            raw.seek(offset + keep)
            raw.write(b"\0" * (count - keep - 2))
    return len(places)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_through_the_batch_path_gives_the_same_features(
    slides, tmp_path, tiling, config, monkeypatch, workers
) -> None:
    config = replace(config, workers=workers)
    usual = embed_slides(slides, tmp_path / "usual", tiling=tiling, config=config)
    assert usual.telemetry is not None
    assert usual.telemetry.decoder == "cpu"
    decoder = Altered()
    use(monkeypatch, decoder)
    monkeypatch.setattr(
        _decoder, "compare", lambda *_, **__: Comparison(cpu_s=9, gpu_s=1, mean_difference=0, most_difference=0)
    )
    batched = embed_slides(slides, tmp_path / "batched", tiling=tiling, config=config)
    assert batched.telemetry is not None
    assert batched.telemetry.decoder == "nvjpeg"
    assert batched.telemetry.jpeg_tiles == usual.telemetry.jpeg_tiles == decoder.seen.total()
    assert set(decoder.seen.values()) == {1}
    expected, found = features(tmp_path / "usual"), features(tmp_path / "batched")
    assert expected.keys() == found.keys() == {"a", "b", "c"}
    for name, rows in expected.items():
        np.testing.assert_array_equal(found[name], rows)
    for out, name in (("usual", "cpu"), ("batched", "nvjpeg")):
        made = open_embeddings(next((tmp_path / out).rglob("features_*/a.h5"))).provenance
        assert made is not None
        assert made.specs["decoder"] == name


@pytest.mark.parametrize("keep", [0, 400, 1500], ids=["no header", "no pixels", "a hole"])
def test_a_damaged_tile_in_a_batch_fails_only_its_slide(slides, tmp_path, tiling, config, monkeypatch, keep) -> None:
    original = engine.plan_slide

    def plan_then_damage(slide: Slide, *args: Any) -> TileGrid:
        # Planning a slide as small as this reads all of it, and would find the damage first.
        grid = original(slide, *args)
        if slide.info.slide_id == "b":
            before = slide.info.path.stat()
            zero_tiles(slide.info.path, slice(4, 5), keep=keep)
            # As a disk damages a file: without a trace in its times.
            os.utime(slide.info.path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return grid

    monkeypatch.setattr(engine, "plan_slide", plan_then_damage)
    copy = shutil.copytree(slides, tmp_path / "copy" / "slides")
    usual = embed_slides(slides, tmp_path / "usual", tiling=tiling, config=config)
    decoder = Altered()
    use(monkeypatch, decoder, asked="auto")
    batched = embed_slides(copy, tmp_path / "batched", tiling=tiling, config=config)
    assert decoder.seen
    for summary in (usual, batched):
        (failure,) = summary.failed
        assert (failure.slide_id, failure.error) == ("b", "SlideReadError")
        assert "b: region x=" in failure.message
        assert "tile 4 (column 1, row 1" in failure.message
    assert batched.failed[0].message == usual.failed[0].message
    expected, found = features(tmp_path / "usual"), features(tmp_path / "batched")
    assert expected.keys() == found.keys() == {"a", "c"}
    for name, rows in expected.items():
        np.testing.assert_array_equal(found[name], rows)


def test_a_batch_decoder_that_refuses_everything_changes_nothing(slides, tmp_path, tiling, config, monkeypatch) -> None:
    usual = embed_slides(slides, tmp_path / "usual", tiling=tiling, config=config)
    use(monkeypatch, Altered(off=9, refuse_every=1))
    batched = embed_slides(slides, tmp_path / "batched", tiling=tiling, config=config)
    assert batched.done == usual.done == 3
    for name, rows in features(tmp_path / "usual").items():
        np.testing.assert_array_equal(features(tmp_path / "batched")[name], rows)


def test_the_flag_is_not_advised_where_it_is_at_work() -> None:
    facts = {"wall_s": 10.0, "n_tiles": 9, "device": "cuda:0", "device_busy": 0.3, "batch_size": 16, "readers": 1}
    seconds = {"wait": 6.0, "decode": 9.0}
    told = [
        Telemetry(seconds=seconds, planners=1, compute_threads=1, decoder=name, **facts).bottleneck
        for name in ("cpu", "nvjpeg")
    ]
    assert [line.startswith("decoding: ") for line in told] == [True, True]
    assert ["--decode nvjpeg" in line for line in told] == [True, False]
