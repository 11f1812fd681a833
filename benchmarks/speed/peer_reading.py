"""A process that reads tiles with another library: ``python -m benchmarks.speed.peer_reading NAME SLIDE``.

It imports nothing but that library and NumPy, so that nothing of ours disturbs it.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from benchmarks.speed.workers import Answer, serve

Pixels = npt.NDArray[np.uint8]
Read = Callable[[list[tuple[int, int]], int, int], Iterator[Pixels]]
"""Takes upper left corners in level-0 pixels, the side of the tiles and a number of threads; gives tiles or batches."""

_BATCH = 64
_CACHE_BYTES = 512 * 2**20
"""Of decoded tiles, where a library has a cache that may be set; as much as our reader may keep."""


def _cucim(path: str) -> Read:
    """cuCIM: tile by tile, or in batches with threads of its own; a cache makes no difference to either."""
    from cucim import CuImage

    slide = CuImage(path)

    def read(corners: list[tuple[int, int]], side: int, threads: int) -> Iterator[Pixels]:
        size = side, side
        if threads == 1:
            yield from (np.asarray(slide.read_region(corner, size, level=0)) for corner in corners)
        else:
            batches = slide.read_region(corners, size, level=0, num_workers=threads, batch_size=_BATCH)
            yield from map(np.asarray, batches)

    return read


def _fastslide(path: str) -> Read:
    """FastSlide with its cache, which it has only when asked."""
    import fastslide

    slide = fastslide.FastSlide.from_file_path(path)
    slide.set_cache(fastslide.CacheManager.create(_CACHE_BYTES))

    def read(corners: list[tuple[int, int]], side: int, threads: int) -> Iterator[Pixels]:
        if threads != 1:
            raise ValueError("one thread")
        yield from (slide.read_region(corner, 0, (side, side)).numpy() for corner in corners)

    return read


def _tiffslide(path: str) -> Read:
    """TiffSlide, without the way over a picture of Pillow."""
    import tiffslide

    slide = tiffslide.TiffSlide(path)

    def read(corners: list[tuple[int, int]], side: int, threads: int) -> Iterator[Pixels]:
        if threads != 1:
            raise ValueError("one thread")
        yield from (slide.read_region(corner, 0, (side, side), as_array=True) for corner in corners)

    return read


LIBRARIES: dict[str, Callable[[str], Read]] = {"cucim": _cucim, "fastslide": _fastslide, "tiffslide": _tiffslide}
"""Name of the module -> opens a slide."""


def main() -> None:
    """Open the slide, then read tiles of it, and save them where that is asked for."""
    name, path = sys.argv[1:]
    read = LIBRARIES[name](path)

    def answer(question: Answer) -> Answer:
        corners = [(x, y) for x, y in question["corners"]]
        cpu, began = time.process_time(), time.perf_counter()
        tiles = read(corners, question["side"], question["threads"])
        if question["save"]:
            np.save(question["save"], np.concatenate([np.array(some).reshape(-1, *some.shape[-3:]) for some in tiles]))
        else:
            deque(tiles, maxlen=0)
        return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}

    serve(answer)


if __name__ == "__main__":
    main()
