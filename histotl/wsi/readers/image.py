"""Plain pictures: PNG and JPEG through Pillow, TIFF through tifffile."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from histotl.core.errors import NotBrightfieldError, SlideOpenError, SlideReadError
from histotl.core.provenance import file_digest
from histotl.core.registry import register
from histotl.core.units import round_px
from histotl.core.values import SlideInfo
from histotl.wsi.readers._pixels import composite, one_line
from histotl.wsi.readers.array import level_of
from histotl.wsi.readers.base import Pixels, SlideBackend, TiledLevel
from histotl.wsi.tiling import level_scale

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

_TIFF, _PNG, _JPEG = (".tif", ".tiff"), (".png",), (".jpg", ".jpeg")
_BACKGROUND = (255, 255, 255)
_CURE_DAMAGED = "the file is damaged: copy or export it again"


@register("reader", "image")
@dataclass(frozen=True, kw_only=True)
class ImageReader:
    """PNG, JPEG, and plain or OME TIFF. PNG and JPEG never say a pixel size: their dots per inch are for printers.

    Args:
        priority: See :class:`histotl.wsi.readers.base.Reader`.
        max_pixels: Largest picture that is decoded as a whole, at 3 bytes of memory a pixel (7 while decoding).
            It takes the place of Pillow's limit, which is far below a whole slide. TIFF that can be read in parts
            (tiled, or uncompressed) has no limit.
    """

    priority: int = 50
    max_pixels: int = 1_000_000_000

    def claims(self, path: Path) -> bool:
        """By suffix."""
        return path.suffix.lower() in _TIFF + _PNG + _JPEG

    def open(self, path: Path) -> SlideBackend:
        """Open a picture; see :class:`histotl.wsi.readers.base.Reader`."""
        share = _shared(path)
        suffix = path.suffix.lower()
        if suffix in _PNG + _JPEG:
            return _open_pillow(path, share, self.max_pixels)
        return _open_tiff(path, share, self.max_pixels)


_STRIP_PX = 512
"""Height of the strips that a picture is converted in."""


class _Source(Protocol):
    """Pixels of one level."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def tiles(self) -> TiledLevel | None: ...
    @property
    def words(self) -> str: ...
    def read(self, left: int, top: int, width: int, height: int) -> Pixels: ...


class ImageBackend:
    """An open picture; made by :class:`ImageReader`."""

    def __init__(self, info: SlideInfo, levels: Sequence[_Source], close: Callable[[], None]) -> None:
        self._info, self._levels = info, levels
        # Also closes when the slide is dropped without close().
        self._close = weakref.finalize(self, close)

    @property
    def info(self) -> SlideInfo:
        """Geometry and pixel size as the file has them."""
        return self._info

    def read_region(self, x_l0: int, y_l0: int, level: int, width: int, height: int) -> Pixels:
        """Decode a rectangle of one level; see :class:`histotl.wsi.readers.base.SlideBackend`."""
        scale_x, scale_y = level_scale(self._info, level)
        return self._levels[level].read(round_px(x_l0 / scale_x), round_px(y_l0 / scale_y), width, height)

    def tiled(self, level: int) -> TiledLevel | None:
        """Direct access to the compressed tiles of a level; None where the picture has none."""
        return self._levels[level].tiles

    def decoding(self, level: int) -> str:
        """How a level is decoded, in words."""
        return self._levels[level].words

    def close(self) -> None:
        """Give the file back; calling twice does no harm."""
        self._close()


@dataclass(eq=False)
class _Shared:
    """Pictures that had to be decoded as a whole, once for all open slides of one file in this process."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    pixels: dict[str, Pixels] = field(default_factory=dict)

    def __call__(self, key: str, decode: Callable[[], Pixels]) -> Pixels:
        with self.lock:
            if key not in self.pixels:
                self.pixels[key] = decode()
            return self.pixels[key]


_open_files: weakref.WeakValueDictionary[tuple[str, int, int], _Shared] = weakref.WeakValueDictionary()
_open_files_lock = threading.Lock()


def _shared(path: Path) -> _Shared:
    """The store of a file; it lives as long as some slide holds it, and a changed file gets a new one."""
    try:
        stat = path.stat()
    except OSError as error:
        raise SlideOpenError(f"{path.name}: {one_line(error)}", hint="check the path") from error
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    with _open_files_lock:
        found = _open_files.get(key)
        if found is None:
            found = _open_files[key] = _Shared()
        return found


@dataclass(frozen=True, kw_only=True)
class _PillowSource:
    """A PNG or JPEG, decoded on first use."""

    path: Path
    width: int
    height: int
    share: _Shared
    tiles: None = None
    words: str = "through Pillow: one picture without tiles"

    def read(self, left: int, top: int, width: int, height: int) -> Pixels:
        pixels = self.share("picture", self._decode)
        return np.array(pixels[top : top + height, left : left + width])

    def _decode(self) -> Pixels:
        try:
            with _pillow(self.path) as image:
                see_through = image.mode in ("RGBA", "PA") or "transparency" in image.info
                pixels = np.empty((self.height, self.width, 3), np.uint8)
                # In strips: converting all at once takes several times the picture's memory.
                for top in range(0, self.height, _STRIP_PX):
                    strip = image.crop((0, top, self.width, min(top + _STRIP_PX, self.height)))
                    pixels[top : top + _STRIP_PX] = (
                        composite(np.asarray(strip.convert("RGBA")), _BACKGROUND)
                        if see_through
                        else np.asarray(strip.convert("RGB"))
                    )
                return pixels
        except (OSError, SyntaxError, ValueError) as error:
            fact = f"{self.path.name}: the picture cannot be decoded: {one_line(error)}"
            raise SlideReadError(fact, hint=_CURE_DAMAGED) from error


def _pillow(path: Path) -> ImageFile:
    """Open with the format's own class: ``Image.open`` refuses large pictures by a limit that is global state."""
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

    return PngImageFile(path) if path.suffix.lower() in _PNG else JpegImageFile(path)


def _open_pillow(path: Path, share: _Shared, max_pixels: int) -> ImageBackend:
    try:
        with _pillow(path) as image:
            (width, height), mode = image.size, image.mode
    except (OSError, SyntaxError, ValueError) as error:
        raise SlideOpenError(f"{path.name}: {one_line(error)}", hint=_CURE_DAMAGED) from error
    if mode not in ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr"):
        fact = f"{path.name}: not brightfield RGB: a single channel (mode {mode})"
        raise NotBrightfieldError(fact, hint="leave this slide out of the run")
    _check_size(path, width, height, max_pixels)
    source = _PillowSource(path=path, width=width, height=height, share=share)
    vendor = "png" if path.suffix.lower() in _PNG else "jpeg"
    return ImageBackend(_describe(path, [source], vendor, (math.nan, math.nan, "")), [source], lambda: None)


def _open_tiff(path: Path, share: _Shared, max_pixels: int) -> ImageBackend:
    import tifffile

    from histotl.wsi.readers import _tiff
    from histotl.wsi.readers._files import FilePerThread

    try:
        tif = tifffile.TiffFile(path)
    except _tiff.DECODE_ERRORS as error:
        raise SlideOpenError(f"{path.name}: {one_line(error)}", hint=_CURE_DAMAGED) from error
    file = FilePerThread(path)

    def close() -> None:
        tif.close()
        file.close()

    try:
        pages = _tiff.open_levels(tif, path.name)
        levels = [_tiff.TiffLevel(page, file, _BACKGROUND, share) for page in pages]
        for level, page in zip(levels, pages, strict=True):
            if level.tiles is None and not page.is_memmappable:
                _check_size(path, level.width, level.height, max_pixels)
        info = _describe(path, levels, "ome-tiff" if tif.is_ome else "tiff", _tiff.pixel_size(tif, pages[0]))
    except (NotBrightfieldError, SlideOpenError):
        close()
        raise
    except (*_tiff.DECODE_ERRORS, IndexError, KeyError) as error:
        close()
        raise SlideOpenError(f"{path.name}: {one_line(error)}", hint=_CURE_DAMAGED) from error
    return ImageBackend(info, levels, close)


def _check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    if width * height <= max_pixels:
        return
    fact = f"{path.name}: {width}x{height} px would take {width * height * 3 / 2**30:.0f} GiB of memory"
    cure = "convert it to a tiled pyramidal TIFF (vips tiffsave --tile --pyramid), or raise the limit with"
    raise SlideOpenError(fact, hint=f"{cure} --reader 'image(max_pixels={width * height})'")


def _describe(path: Path, levels: Sequence[_Source], vendor: str, size: tuple[float, float, str]) -> SlideInfo:
    width, height = levels[0].width, levels[0].height
    return SlideInfo(
        path=path,
        slide_id=path.stem,
        reader="image",
        vendor=vendor,
        width=width,
        height=height,
        mpp_x=size[0],
        mpp_y=size[1],
        mpp_source=size[2],
        levels=tuple(level_of(width, height, level.width, level.height) for level in levels),
        bounds_l0=(0, 0, width, height),
        background=_BACKGROUND,
        fingerprint=file_digest(path),
    )
