"""A process that only decodes JPEG tiles: ``python -m benchmarks.speed.decoder FILE``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import simplejpeg

from benchmarks.speed.workers import Answer, serve


def main() -> None:
    """Hold the tiles of a file (each with its length before it) and decode all of them whenever asked."""
    content, tiles, place = Path(sys.argv[1]).read_bytes(), [], 0
    while place < len(content):
        size = int.from_bytes(content[place : place + 4], "little")
        tiles.append(content[place + 4 : place + 4 + size])
        place += 4 + size
    height, width, _, _ = simplejpeg.decode_jpeg_header(tiles[0])
    buffer = np.empty((height, width, 3), np.uint8)

    def decode(_: Answer) -> Answer:
        began = time.perf_counter()
        for tile in tiles:
            simplejpeg.decode_jpeg(tile, buffer=buffer)
        return {"seconds": time.perf_counter() - began}

    serve(decode)


if __name__ == "__main__":
    main()
