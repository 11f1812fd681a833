"""Which decoder of JPEG tiles a run uses, found out on its first slide that has some.

Both decoders get the same tiles and the same number of threads. The GPU is taken where it is faster by enough, and
where its pixels differ by at most :data:`MOST_DIFFERENCE` levels on average; what that means for features stands in
:mod:`histotl.embed._nvjpeg`.
"""

from __future__ import annotations

import logging
import statistics
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch

from histotl.core.errors import SetupError, SlideReadError, UsageError
from histotl.core.values import SlideInfo, TileGrid
from histotl.embed._nvjpeg import TorchvisionDecoder
from histotl.embed._plan import sample_rows
from histotl.embed.config import JpegDecoder
from histotl.wsi.readers.base import BatchDecoder, JpegStreams, Pixels, TiledLevel
from histotl.wsi.slide import Slide

log = logging.getLogger(__name__)

CPU = "cpu"
"""Name of the decoder in telemetry and provenance where there is no batch decoder."""

MOST_DIFFERENCE = 0.5
"""Levels of 255 by which the pixels of both decoders may differ on average."""

_GAIN = 1.2
"""The GPU must be faster by this factor: it has a network to run at the same time."""

_SAMPLE_TILES = 64
_PART_TILES = 16
_PART_BYTES = 8 * 2**20
"""Compressed tiles that both decoders are compared on, and that a thread decodes with one call meanwhile."""

_ROUNDS = 3


class DecoderChoice:
    """Which decoder a run uses: found out on its first slide that has JPEG tiles. Planners share it.

    Args:
        asked: ``cpu``, ``nvjpeg``, or ``auto`` for the GPU where it is faster with nearly the same pixels.
        device: Where the network runs.
        threads: Readers.
        make: Makes the decoder of a device.
        timer: Gives seconds.

    Raises:
        UsageError: ``nvjpeg`` is asked for and the network is not on a GPU.
        SetupError: ``nvjpeg`` is asked for and cannot be had.
    """

    def __init__(
        self,
        asked: JpegDecoder,
        device: torch.device,
        threads: int,
        *,
        make: Callable[[torch.device], BatchDecoder] = TorchvisionDecoder,
        timer: Callable[[], float] = perf_counter,
    ) -> None:
        self._forced, self._threads, self._timer = asked == "nvjpeg", threads, timer
        self._lock, self._decided, self.name = threading.Lock(), False, CPU
        self._decoder: BatchDecoder | None = None
        if device.type == "cuda" and asked != "cpu":
            self._decoder = self._made(make, device)
        elif self._forced:
            fact = f"--decode nvjpeg needs a GPU, and the network runs on {device}"
            raise UsageError(fact, hint="leave out --decode, or give --device cuda")

    def decoder_for(self, slide: Slide, grid: TileGrid) -> BatchDecoder | None:
        """The batch decoder for the tiles of a slide; None where they are decoded on the CPU.

        The first slide whose tiles both decoders can decode settles it, while other planners wait.

        Raises:
            SlideOpenError: The file cannot be opened again.
        """
        if self._decoder is None:
            return None
        level = slide.tiled(grid.read_level)
        if not isinstance(level, JpegStreams) or level.streams([]) is None:
            return None
        with self._lock:
            if not self._decided and self._decoder is not None:
                self._decide(self._decoder, sample_of(level, slide.info, grid))
            if self._decoder is None or not (self._decided or self._forced):
                return None
            self.name = self._decoder.name
            return self._decoder

    def _made(self, make: Callable[[torch.device], BatchDecoder], device: torch.device) -> BatchDecoder | None:
        try:
            return make(device)
        except SetupError as error:
            if self._forced:
                raise
            log.info("JPEG tiles are decoded on the CPU: %s", error.message)
            return None

    def _decide(self, decoder: BatchDecoder, sample: Sample | None) -> None:
        if sample is None:
            return  # this slide is damaged: the next one will do
        found = compare(sample, decoder, self._threads, timer=self._timer)
        objection = found.objection
        self._decided = True
        if objection and not self._forced:
            self._decoder = None
            log.info("JPEG tiles are decoded on the CPU: %s; %s", objection, found)
            return
        level = logging.WARNING if objection else logging.INFO
        log.log(level, "JPEG tiles are decoded by %s: %s", decoder.name, found)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Tiles of a slide that the CPU can decode.

    Args:
        level: Where they are from.
        tiles: Their numbers.
        data: As in the file.
        streams: As JPEG files.
        pixels: Decoded by the level.
    """

    level: TiledLevel
    tiles: list[int]
    data: list[bytes]
    streams: list[bytearray]
    pixels: list[Pixels]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two decoders on the same tiles with the same number of threads.

    Args:
        cpu_s: Seconds of the CPU.
        gpu_s: Seconds of the batch decoder.
        mean_difference: Of the pixels, in levels of 255.
        most_difference: Likewise, the largest.
        refused: Share of the tiles that the batch decoder did not take.
    """

    cpu_s: float
    gpu_s: float
    mean_difference: float
    most_difference: int
    refused: float = 0.0

    @property
    def objection(self) -> str:
        """Why the batch decoder is not to be taken; empty where it is."""
        if self.refused:
            return f"{self.refused:.0%} of the tiles are not for it"
        if self.mean_difference > MOST_DIFFERENCE:
            return f"the pixels differ by more than {MOST_DIFFERENCE} levels"
        return "the GPU is not fast enough" if self.cpu_s < _GAIN * self.gpu_s else ""

    def __str__(self) -> str:
        times = self.cpu_s / max(self.gpu_s, 1e-9)
        fact = (
            f"the GPU is {times:.2f} times as fast as the CPU, and pixels differ by {self.mean_difference:.3f} levels"
        )
        return f"{fact} on average, {self.most_difference} at most"


def sample_of(level: TiledLevel, info: SlideInfo, grid: TileGrid) -> Sample | None:
    """Compressed tiles spread evenly over a grid; None where none can be read and decoded."""
    if not isinstance(level, JpegStreams):
        return None
    tiles = _under(level, info, grid)
    tiles = tiles[sample_rows(len(tiles), _SAMPLE_TILES)]
    try:
        data = level.fetch(tiles.tolist())
    except SlideReadError:
        return None  # the reader will meet it again, and say where
    sample = Sample(level=level, tiles=[], data=[], streams=[], pixels=[])
    for tile, item, stream in zip(tiles.tolist(), data, level.streams(data) or [], strict=True):
        if stream is None:
            continue
        try:
            sample.pixels.append(level.decode(tile, item))
        except SlideReadError:
            continue
        sample.tiles.append(tile)
        sample.data.append(item)
        sample.streams.append(stream)
    return sample if sample.tiles else None


def _under(level: TiledLevel, info: SlideInfo, grid: TileGrid) -> npt.NDArray[np.int64]:
    """Numbers of the compressed tiles under the centres of a grid's tiles, ascending."""
    scale = info.levels[grid.read_level].downsample
    centres = (grid.coords_l0 + np.array(grid.footprint_l0) / 2) / scale
    places = (centres // np.array(level.tile_size)).astype(np.int64)[:, ::-1]
    numbers: npt.NDArray[np.int64] = np.unique(np.clip(places, 0, np.array(level.shape) - 1) @ (level.shape[1], 1))
    present: npt.NDArray[np.int64] = numbers[level.present.ravel()[numbers]]
    return present


def compare(
    sample: Sample, decoder: BatchDecoder, threads: int, *, timer: Callable[[], float] = perf_counter
) -> Comparison:
    """Decode a sample by turns on the CPU and with a batch decoder, in as many threads as will read.

    Args:
        sample: The tiles.
        decoder: Of the batches.
        threads: How many.
        timer: Gives seconds.

    Returns:
        Medians of the seconds, and how far the pixels are from each other.
    """
    size = sample.pixels[0].nbytes
    together = max(1, min(_PART_TILES, _PART_BYTES // size))
    count = len(sample.tiles)
    parts = [range(start, min(start + together, count)) for start in range(0, count, together)]
    parts *= -(-2 * threads // len(parts))  # enough for all threads
    mean, most, refused = _differences(sample, decoder, together)
    mine = threading.local()

    def arrays(part: range) -> list[Pixels]:
        if not hasattr(mine, "arrays"):
            mine.arrays = [np.zeros_like(sample.pixels[0]) for _ in range(together)]
        return list(mine.arrays[: len(part)])

    def on_cpu(part: range) -> None:
        for index, out in zip(part, arrays(part), strict=True):
            sample.level.decode(sample.tiles[index], sample.data[index], out)

    def in_batch(part: range) -> None:
        decoder.decode(sample.streams[part.start : part.stop], arrays(part))

    seconds: dict[Callable[[range], None], list[float]] = {on_cpu: [], in_batch: []}
    with ThreadPoolExecutor(threads, thread_name_prefix="histotl-trial") as pool:
        for work in seconds:
            list(pool.map(work, parts))  # takes memory, and starts the GPU's library
        for _ in range(_ROUNDS):
            for work, took in seconds.items():
                began = timer()
                list(pool.map(work, parts))
                took.append(timer() - began)
    return Comparison(
        cpu_s=statistics.median(seconds[on_cpu]),
        gpu_s=statistics.median(seconds[in_batch]),
        mean_difference=mean,
        most_difference=most,
        refused=refused,
    )


def _differences(sample: Sample, decoder: BatchDecoder, together: int) -> tuple[float, int, float]:
    """(mean, largest) difference of the pixels in levels, and the share of tiles that the decoder did not take."""
    total, most, taken = 0.0, 0, 0
    for start in range(0, len(sample.tiles), together):
        right = sample.pixels[start : start + together]
        outs = [np.zeros_like(pixels) for pixels in right]
        done = decoder.decode(sample.streams[start : start + together], outs)
        for pixels, out, decoded in zip(right, outs, done, strict=True):
            if decoded:
                off = np.abs(pixels.astype(np.int16) - out)
                total, most, taken = total + float(off.mean()), max(most, int(off.max())), taken + 1
    return total / max(taken, 1), most, 1 - taken / len(sample.tiles)
