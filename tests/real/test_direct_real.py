"""Direct decoding against OpenSlide on every real slide that OpenSlide reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image

from histotl.wsi.readers._describe import describe
from histotl.wsi.readers.openslide import OpenSlideBackend

DIRECT_LEVELS = {
    "boxes.tiff": 4,
    "cmu-1-small-region.svs": 1,
    "multiframe_camelyon_challenge_image.dcm": 1,
    "test3-DAPI-2-387.ndpi": 4,
}
"""How many levels of the slides that are known here are read directly; the others are compared all the same."""

UNREADABLE = {"unreadable.svs"}
"""Opens, but OpenSlide cannot decode it either."""


def white(image: Image.Image) -> np.ndarray:
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB"))


def test_every_slide_has_openslides_pixels(real_data: Path) -> None:
    seen = {}
    for path in sorted((real_data / "slides").iterdir()):
        if openslide.OpenSlide.detect_format(path) is None or path.name in UNREADABLE:
            continue
        try:
            raw = openslide.OpenSlide(path)
        except openslide.OpenSlideError:
            continue
        backend, rng = OpenSlideBackend(path), np.random.default_rng(0)
        assert replace(backend.info, slide_id="") == replace(describe(path, raw), slide_id=""), path.name
        for level, (width, height) in enumerate(raw.level_dimensions):
            whole = white(raw.read_region((0, 0), level, (width, height)))
            assert np.array_equal(backend.read_region(0, 0, level, width, height), whole), (path.name, level)
            seen[path.name] = seen.get(path.name, 0) + backend.decoding(level).startswith("direct: ")
            for _ in range(30 if backend.tiled(level) is not None else 0):
                left, top = int(rng.integers(width)), int(rng.integers(height))
                w, h = (
                    int(rng.integers(1, min(700, width - left) + 1)),
                    int(rng.integers(1, min(700, height - top) + 1)),
                )
                x, y = round(left * raw.dimensions[0] / width), round(top * raw.dimensions[1] / height)
                region = backend.read_region(x, y, level, w, h)
                assert np.array_equal(region, whole[top : top + h, left : left + w]), (path.name, level, left, top)
        backend.close()
        raw.close()
    assert seen
    for name, levels in seen.items():
        assert levels == DIRECT_LEVELS.get(name, levels), name


def test_scaled_decoding_is_as_near_as_the_docstring_says(real_data: Path) -> None:
    path = real_data / "slides" / "cmu-1-small-region.svs"
    if not path.is_file():
        pytest.skip(f"REAL DATA MISSING: no {path}")
    backend = OpenSlideBackend(path, "dct")
    full = backend.read_region(0, 0, 0, backend.info.width, backend.info.height)
    for level, times, mean, largest in ((1, 2, 0.12, 20), (2, 4, 0.09, 10), (3, 8, 0.09, 5)):
        size = backend.info.levels[level]
        read = backend.read_region(0, 0, level, size.width, size.height)
        blocks = full[: size.height * times, : size.width * times].reshape(size.height, times, size.width, times, 3)
        error = abs(read - np.floor(blocks.mean((1, 3)) + 0.5))
        assert error.mean() < mean
        assert error.max() <= largest
    backend.close()
