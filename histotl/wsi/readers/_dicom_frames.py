"""Direct access to the frames of DICOM whole-slide images.

OpenSlide takes the files of one series in a folder as the levels of a slide; so does this, and it gives access only
where there is no doubt that both mean the same frames. Frames are JPEG, JPEG 2000 or plain RGB (transfer syntaxes that
OpenSlide reads too); the photometric interpretation says whether JPEG holds RGB or YCbCr, as OpenSlide has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from histotl.core.errors import SlideReadError, UsageError
from histotl.core.values import SlideInfo
from histotl.wsi._dicom import series_of
from histotl.wsi.readers._dicom_codecs import coding_of
from histotl.wsi.readers._dicom_header import NATIVE, DicomImage, Table, read_image
from histotl.wsi.readers._files import FilePerThread, read_ranges
from histotl.wsi.readers._jpeg import jpeg_streams
from histotl.wsi.readers._pixels import one_line
from histotl.wsi.readers._tiled import CODEC_ERRORS, CURE_DAMAGED
from histotl.wsi.readers.base import Pixels, TiledLevel

_MOST_TILES = 1 << 24
"""Of a level: a million pixels each way with the smallest usual tiles."""

_PROBES = 4
"""Frames that are looked at to find out how they are coded; more than one since any may be damaged."""

_ITEM = b"\xfe\xff\x00\xe0"


class DicomLevel:
    """The frames of one file as tiles; see :class:`histotl.wsi.readers.base.TiledLevel`.

    Args:
        image: The file.

    Attributes:
        words: How frames are coded, such as ``JPEG 256×256, YCbCr 4:2:0``.

    Raises:
        ValueError: Its frames are no grid of tiles, or coded in a way that OpenSlide does not read.
    """

    def __init__(self, image: DicomImage) -> None:
        self._image, self._grid = image, _grid(image)
        self._coding = coding = coding_of(image)
        self._codec = coding.codec
        width, height = image.tile_size
        self._tile_shape = (height, width, 3)
        self._present = self._grid >= 0
        self._present.flags.writeable = False
        self._file = FilePerThread(image.path)
        self.words = self._look()
        # Levels of a slide are many, and most are never read: no handle is kept from the look.
        self._file.close()
        self._file = FilePerThread(image.path)

    @property
    def tile_size(self) -> tuple[int, int]:
        """(width, height) of a decoded tile."""
        return self._tile_shape[1], self._tile_shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of tiles."""
        rows, columns = self._grid.shape
        return rows, columns

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Tiles that the file has, bool (rows, columns)."""
        return self._present

    def fetch(self, tiles: Sequence[int]) -> list[bytes]:
        """Compressed bytes of tiles; see :class:`histotl.wsi.readers.base.TiledLevel`."""
        frames = self._grid.ravel()[np.asarray(tiles, np.intp)]
        if (frames < 0).any():
            fact = f"{self._image.path.name}: a tile is asked for that the file has not"
            raise UsageError(fact, hint="mind `present`")
        starts, spans = self._image.starts[frames].tolist(), self._image.spans[frames].tolist()
        found, short = read_ranges(self._file.read, starts, spans)
        if short:
            raise self._error(tiles[short[0]], "the file ends inside it")
        if self._image.syntax == NATIVE:
            return found
        return [self._payload(tile, data) for tile, data in zip(tiles, found, strict=True)]

    def decode(self, tile: int, data: bytes, out: Pixels | None = None) -> Pixels:
        """Decode one tile; see :class:`histotl.wsi.readers.base.TiledLevel`."""
        if out is not None and (out.shape != self._tile_shape or not out.flags.c_contiguous):
            fact = f"out is {out.shape}, a tile {self._tile_shape}"
            raise UsageError(fact, hint="give a contiguous array of its size")
        try:
            return self._codec.decode(data, out)
        except CODEC_ERRORS as error:
            raise self._error(tile, one_line(error)) from error

    def streams(self, data: Sequence[bytes]) -> list[bytearray | None] | None:
        """Tiles as JPEG files; see :class:`histotl.wsi.readers.base.JpegStreams`."""
        return jpeg_streams(self._codec, data)

    def close(self) -> None:
        """Give the file back; calling twice does no harm."""
        self._file.close()

    def _look(self) -> str:
        """How frames say that they are coded; several are tried."""
        tiles = np.flatnonzero(self._present)
        reason = "no frames"
        for tile in tiles[np.linspace(0, len(tiles) - 1, _PROBES).astype(int)].tolist():
            try:
                return self._coding.look(self.fetch([tile])[0])
            except (ValueError, SlideReadError) as error:
                reason = one_line(error)
        raise ValueError(reason)

    def _payload(self, tile: int, data: bytes) -> bytes:
        """A frame without the headers of its items."""
        parts, position = [], 0
        while position < len(data):
            end = position + 8 + int.from_bytes(data[position + 4 : position + 8], "little")
            if data[position : position + 4] != _ITEM or end > len(data):
                raise self._error(tile, "its bytes are no items of pixels")
            parts.append(data[position + 8 : end])
            position = end
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _error(self, tile: int, why: str) -> SlideReadError:
        row, column = divmod(tile, self.shape[1])
        width, height = self._image.tile_size
        fact = f"{self._image.path.name}: tile {tile} (column {column}, row {row}, x={column * width}"
        fact += f" y={row * height} of {self._image.size[0]}x{self._image.size[1]} px) cannot be decoded: {why}"
        return SlideReadError(fact, hint=CURE_DAMAGED)


def dicom_levels(path: Path, info: SlideInfo) -> list[TiledLevel | None]:
    """Direct access to the levels of a DICOM slide.

    Args:
        path: The file that OpenSlide opened.
        info: What OpenSlide says of the slide.

    Returns:
        One entry for each of ``info.levels``; None where regions are the only way.
    """
    return [None if isinstance(level, str) else level for level in dicom_levels_or_reasons(path, info)]


def dicom_levels_or_reasons(path: Path, info: SlideInfo) -> list[DicomLevel | str]:
    """As :func:`dicom_levels`, with the reason in words where there is no direct access."""
    images, troubles = _series_images(path)
    return [_level(images, troubles, path, (level.width, level.height)) for level in info.levels]


def _series_images(path: Path) -> tuple[list[DicomImage], dict[str, str]]:
    """(files of the slide's series that are levels, what is the matter with those that cannot be used)."""
    images, troubles = [], {}
    series = series_of(path)
    try:
        beside = sorted(file for file in path.parent.iterdir() if file.name != path.name and file.is_file())
    except OSError as error:
        beside, troubles[path.parent.name] = [], one_line(error)
    for file in [path, *beside] if series else []:
        try:
            _, image = read_image(file, series)
        except (OSError, ValueError) as error:
            if file == path or series_of(file) == series:
                troubles[file.name] = one_line(error)
            continue
        if image is not None:
            images.append(image)
    return images, troubles


def _level(
    images: Sequence[DicomImage], troubles: dict[str, str], path: Path, size: tuple[int, int]
) -> DicomLevel | str:
    fitting = [image for image in images if image.size == size]
    if not fitting:
        others = "; ".join(f"{name}: {trouble}" for name, trouble in troubles.items())
        return f"no file of the series with {size[0]}x{size[1]} px could be used" + (f" ({others})" if others else "")
    copies = {image.instance for image in fitting}
    # Of copies of one file OpenSlide takes the one that it was given, or else whichever the folder lists first.
    if len(fitting) > 1 and (len(copies) > 1 or fitting[0].path != path):
        return f"{len(fitting)} files of the series have {size[0]}x{size[1]} px"
    try:
        return DicomLevel(fitting[0])
    except (OSError, ValueError) as error:
        return f"{fitting[0].path.name}: {one_line(error)}"


def _grid(image: DicomImage) -> Table:
    """Frame at each place of the grid, -1 where there is none, (rows, columns)."""
    (width, height), (across, down) = image.size, image.tile_size
    if min(width, height, across, down) < 1 or image.concatenated:
        raise ValueError("the level is spread over several files" if image.concatenated else "a size of 0 px")
    shape = -(-height // down), -(-width // across)
    tiles, frames = shape[0] * shape[1], len(image.starts)
    if tiles > _MOST_TILES or image.organization not in ("", "TILED_FULL", "TILED_SPARSE"):
        raise ValueError(f"{tiles} tiles, organized as {image.organization or 'not given'}")
    if image.places is None:
        if frames != tiles or image.organization == "TILED_SPARSE":
            raise ValueError(f"{frames} frames without positions for {tiles} tiles")
        return np.arange(tiles).reshape(shape)
    columns, off_x = np.divmod(image.places[:, 0], across)
    rows, off_y = np.divmod(image.places[:, 1], down)
    inside = (columns >= 0) & (columns < shape[1]) & (rows >= 0) & (rows < shape[0])
    if len(columns) != frames or off_x.any() or off_y.any() or not inside.all():
        raise ValueError(f"positions of {len(columns)} frames that are no grid of tiles")
    grid = np.full(shape, -1)
    grid[rows, columns] = np.arange(frames)
    if (grid >= 0).sum() != frames:
        raise ValueError("several frames at one position")
    return grid
