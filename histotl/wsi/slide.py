"""A slide: what is known of it, and its pixels at any place and scale."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from histotl.core.errors import SlideError, SlideOpenError, UsageError
from histotl.core.units import round_px
from histotl.core.values import SlideInfo
from histotl.wsi._layout import fill_around
from histotl.wsi._opening import first_that_opens, slide_name, with_pixel_size
from histotl.wsi._resample import COPY, Windows, Workspace, windows_l0
from histotl.wsi.readers._brightfield import check_brightfield
from histotl.wsi.readers.array import ArrayBackend
from histotl.wsi.readers.base import Pixels, ShrinksLevels, SlideBackend, TiledLevel
from histotl.wsi.tiling import best_level, level_scale

_BLOCK_PX = 16_000_000
"""Source pixels that are decoded at a time; bounds the memory of large reads."""


class Slide:
    """An open slide. For another thread or process, copy or pickle it: the copy opens the file on first use.

    Args:
        info: Geometry, with a checked pixel size.
        reopen: Opens the backend; picklable.
        backend: One that is open already.
    """

    def __init__(
        self, info: SlideInfo, reopen: Callable[[], SlideBackend], backend: SlideBackend | None = None
    ) -> None:
        self.info = info
        self._reopen = reopen
        self._backend = backend

    def read(
        self,
        x_l0: float,
        y_l0: float,
        footprint_l0: tuple[float, float],
        out_px: int,
        level: int | None = None,
    ) -> Pixels:
        """Pixels of a rectangle, resampled to a square tile.

        The field of view is exact to a fraction of a pixel. Shrinking is antialiased (cubic convolution, Keys 1981,
        widened by the scale). What lies outside the slide is filled with its background colour.

        Args:
            x_l0: Left border in level-0 pixels; need not be whole.
            y_l0: Upper border.
            footprint_l0: (width, height) in level-0 pixels.
            out_px: Side of the tile in pixels.
            level: Pyramid level to read; the best one when None.

        Returns:
            uint8 RGB (out_px, out_px, 3).

        Raises:
            SlideReadError: A region cannot be decoded.
            SlideOpenError: The file cannot be opened again.
        """
        return self._resample((x_l0, y_l0), footprint_l0, (out_px, out_px), level)

    def thumbnail(self, mpp: float) -> tuple[Pixels, float]:
        """The whole slide at about ``mpp`` µm per pixel, never enlarged.

        Returns:
            uint8 RGB (h, w, 3), and its true resolution in µm per pixel (the mean of both axes).

        Raises:
            SlideReadError: A region cannot be decoded.
            UsageError: ``mpp`` is not positive.
        """
        if not mpp > 0:
            raise UsageError(f"thumbnail of {mpp} µm/px", hint="give a positive number, such as 8")
        info = self.info
        width = max(1, round_px(info.width * min(1.0, info.mpp_x / mpp)))
        height = max(1, round_px(info.height * min(1.0, info.mpp_y / mpp)))
        image = self._resample((0.0, 0.0), (info.width, info.height), (width, height), None)
        return image, (info.width * info.mpp_x / width + info.height * info.mpp_y / height) / 2

    def whole_level(self, level: int, times: int = 1) -> Pixels:
        """A level as it is, or shrunk by means of squares of ``times`` x ``times`` pixels.

        Args:
            level: Index into ``info.levels``.
            times: What is left over at the right and lower border is dropped.

        Returns:
            uint8 RGB (height, width, 3).

        Raises:
            SlideReadError: It cannot be decoded.
        """
        found = self.info.levels[level]
        width, height = found.width // times, found.height // times
        if times > 1 and min(width, height) > 0 and isinstance(backend := self._opened(), ShrinksLevels):
            image = backend.level_means(level, times)
            if image is not None:
                return image
        image = self._region(level, 0, 0, found.width, found.height)
        return image if times == 1 else _means(image, times)

    def draft(self, level: int, least_px: int) -> Pixels:
        """A level for people to look at, decoded 2, 4 or 8 times smaller where its file allows that.

        Args:
            level: Index into ``info.levels``.
            least_px: Least length of the picture's longer side, up to the level's own.

        Returns:
            uint8 RGB.

        Raises:
            SlideReadError: It cannot be decoded.
        """
        found, backend = self.info.levels[level], self._opened()
        if isinstance(backend, ShrinksLevels):
            for times in (8, 4, 2):
                if max(found.width, found.height) // times >= least_px:
                    image = backend.level_means(level, times, draft=True)
                    if image is not None:
                        return image
        return self.whole_level(level)

    def tiled(self, level: int) -> TiledLevel | None:
        """Direct access to the compressed tiles of a level, valid until the slide is closed; None where there is none.

        Raises:
            SlideOpenError: The file cannot be opened again.
        """
        return self._opened().tiled(level)

    def decoding(self, level: int) -> str:
        """How a level is decoded, in words.

        Raises:
            SlideOpenError: The file cannot be opened again.
        """
        return self._opened().decoding(level)

    def close(self) -> None:
        """Give the file back; a later read opens it again."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, object]:
        # Decoder handles belong to one thread of one process.
        return {**self.__dict__, "_backend": None}

    def __repr__(self) -> str:
        info = self.info
        return f"Slide({info.slide_id!r}, {info.width}x{info.height} px, {info.mpp:.4g} µm/px, {info.reader})"

    def _resample(
        self, corner_l0: tuple[float, float], size_l0: tuple[float, float], size_px: tuple[int, int], level: int | None
    ) -> Pixels:
        zoom = min(size_l0[0] / size_px[0], size_l0[1] / size_px[1])
        level = best_level(self.info, zoom) if level is None else level
        windows = windows_l0(self.info, np.array([corner_l0], np.float64), size_l0, size_px, level)
        (left, top), (right, bottom) = windows.first[0].tolist(), windows.last[0].tolist()
        if windows.mode[0] == COPY:
            return self._region(level, left, top, right, bottom)
        if in_blocks(windows):
            return self._in_halves(corner_l0, size_l0, size_px, level)
        region = np.require(self._region(level, left, top, right, bottom), requirements=("C", "W"))
        tile = np.empty((size_px[1], size_px[0], 3), np.uint8)
        Workspace().render(windows, [0], region.reshape(1, *region.shape), [tile])
        return tile

    def _in_halves(
        self, corner_l0: tuple[float, float], size_l0: tuple[float, float], size_px: tuple[int, int], level: int
    ) -> Pixels:
        """The same picture from two reads of half the size, split along its longer side."""
        axis = 0 if size_px[0] >= size_px[1] else 1
        cut_px = size_px[axis] // 2
        cut_l0 = size_l0[axis] * cut_px / size_px[axis]
        halves = []
        for start, length, pixels in ((0.0, cut_l0, cut_px), (cut_l0, size_l0[axis] - cut_l0, size_px[axis] - cut_px)):
            corner, size, shape = list(corner_l0), list(size_l0), list(size_px)
            corner[axis], size[axis], shape[axis] = corner_l0[axis] + start, length, pixels
            halves.append(self._resample((corner[0], corner[1]), (size[0], size[1]), (shape[0], shape[1]), level))
        return np.concatenate(halves, axis=1 - axis)

    def _opened(self) -> SlideBackend:
        if self._backend is None:
            self._backend = self._reopen()
        return self._backend

    def _region(self, level: int, left: int, top: int, right: int, bottom: int) -> Pixels:
        """Pixels of a level as they are; background where the rectangle leaves it."""
        found = self.info.levels[level]
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(right, found.width), min(bottom, found.height)
        scale_x, scale_y = level_scale(self.info, level)
        inside = None
        if x1 > x0 and y1 > y0:
            inside = self._opened().read_region(round_px(x0 * scale_x), round_px(y0 * scale_y), level, x1 - x0, y1 - y0)
            if (x0, y0, x1, y1) == (left, top, right, bottom):
                return inside
        canvas = np.empty((bottom - top, right - left, 3), np.uint8)
        fill_around(canvas, (x0 - left, y0 - top, x1 - left, y1 - top), self.info.background)
        if inside is not None:
            canvas[y0 - top : y1 - top, x0 - left : x1 - left] = inside
        return canvas


def in_blocks(windows: Windows) -> bool:
    """Whether the source of one tile is so large that it is read in pieces."""
    pixels = windows.scale[0] * windows.out_px[0] * windows.scale[1] * windows.out_px[1]
    return pixels > _BLOCK_PX and max(windows.out_px) > 1


def open_slide(
    path: Path | str,
    *,
    mpp: float | None = None,
    mpp_source: str = "--mpp-override",
    slide_id: str | None = None,
    reader: str | None = None,
) -> Slide:
    """Open a slide with the first reader that can.

    Args:
        path: The file.
        mpp: Pixel size in µm that replaces the file's own.
        mpp_source: Who said so: ``--mpp-override`` or ``manifest``.
        slide_id: Name of the slide; the file's stem when None.
        reader: Spec of the one reader to use; when None, those that claim the file, from the highest priority down.

    Raises:
        SlideOpenError: No file, or no reader can open it; the message gives every reader's reason.
        MppError: The pixel size is missing, implausible or differs between x and y.
        NotBrightfieldError: Fluorescence or a single channel.
        UnknownNameError: No reader of that name.
    """
    path = Path(path)
    if not path.is_file():
        fact = f"{path}: " + ("a folder, not a slide" if path.is_dir() else "no such file")
        raise SlideOpenError(fact, hint="give one of its files" if path.is_dir() else "check the path")
    if not os.access(path, os.R_OK):
        raise SlideOpenError(f"{path}: no right to read it", hint="ask its owner, or give yourself the right: chmod +r")
    chosen, backend = first_that_opens(path, reader)
    try:
        check_brightfield(backend, path.name)
        info = with_pixel_size(backend.info, mpp, mpp_source)
    except SlideError:
        backend.close()
        raise
    name = slide_id if slide_id is not None else slide_name(path)
    return Slide(replace(info, slide_id=name), partial(chosen.open, path), backend)


def open_array(
    array: Pixels,
    *,
    mpp: float | tuple[float, float],
    slide_id: str = "array",
    levels: Sequence[Pixels] = (),
    background: tuple[int, int, int] = (255, 255, 255),
) -> Slide:
    """A slide of an array in memory, taken to be brightfield.

    Args:
        array: uint8 RGB (h, w, 3) or RGBA (h, w, 4): level 0.
        mpp: Pixel size in µm, or that in x and in y.
        slide_id: Name of the slide.
        levels: Further levels, finest first; each covers the whole slide.
        background: RGB under transparent pixels and beyond the border.

    Raises:
        MppError: The pixel size is implausible.
        NotBrightfieldError: Not three or four channels.
        SlideOpenError: Not uint8, or levels that do not shrink.
    """
    size = (mpp, mpp) if isinstance(mpp, (int, float)) else mpp
    backend = ArrayBackend(
        [array, *levels], path=Path(slide_id), mpp=size, mpp_source="argument", slide_id=slide_id, background=background
    )
    return Slide(with_pixel_size(backend.info, None, ""), partial(_already_open, backend), backend)


def _already_open(backend: ArrayBackend) -> SlideBackend:
    return backend


def _means(image: Pixels, times: int) -> Pixels:
    """A picture shrunk by means of squares; what is left over at the right and lower border is dropped."""
    import cv2

    width, height = max(1, image.shape[1] // times), max(1, image.shape[0] // times)
    return np.asarray(
        cv2.resize(image[: height * times, : width * times], (width, height), interpolation=cv2.INTER_AREA), np.uint8
    )
