"""Direct access to the frames of a real DICOM slide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide

from histotl.wsi.readers._dicom_frames import DicomLevel, dicom_levels_or_reasons
from histotl.wsi.readers.openslide import OpenSlideReader


def test_every_frame_has_the_pixels_of_openslide(real_data: Path) -> None:
    path = real_data / "slides" / "multiframe_camelyon_challenge_image.dcm"
    backend = OpenSlideReader().open(path)
    (level,) = dicom_levels_or_reasons(path, backend.info)
    backend.close()
    assert isinstance(level, DicomLevel), level
    assert (level.tile_size, level.shape, level.words) == ((256, 256), (3, 5), "JPEG 256×256, YCbCr 4:2:0")
    assert level.present.all()
    with openslide.OpenSlide(path) as slide:
        width, height = slide.dimensions
        expected = np.asarray(slide.read_region((0, 0), 0, (width, height)))[..., :3]
    tiles = list(range(level.shape[0] * level.shape[1]))
    for tile, data in zip(tiles, level.fetch(tiles), strict=True):
        row, column = divmod(tile, level.shape[1])
        part = expected[256 * row : 256 * (row + 1), 256 * column : 256 * (column + 1)]
        assert np.array_equal(level.decode(tile, data)[: part.shape[0], : part.shape[1]], part)
    level.close()
