"""Whole-slide formats: metadata through OpenSlide, and directly what is certain to be the same.

That is the pixels of most formats, and the metadata of Aperio slides.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from histotl.core.errors import MissingDependencyError, SlideOpenError, SlideReadError, UsageError
from histotl.core.registry import register
from histotl.core.spec import Spec
from histotl.core.units import round_px
from histotl.core.values import SlideInfo
from histotl.wsi.readers._aperio import aperio_slide
from histotl.wsi.readers._codecs import FACTORS
from histotl.wsi.readers._describe import describe
from histotl.wsi.readers._direct import LevelPlan, plan_levels, with_scaled_levels
from histotl.wsi.readers._files import FilePerThread, state_of
from histotl.wsi.readers._pixels import composite, one_line
from histotl.wsi.readers._tiled import CURE_DAMAGED, TiffTiles, TileRegions
from histotl.wsi.readers.base import Pixels, TiledLevel
from histotl.wsi.tiling import level_scale

if TYPE_CHECKING:
    from openslide import OpenSlide

    from histotl.wsi.readers._dicom_frames import DicomLevel

SUFFIXES = frozenset(
    (
        *(".svs", ".tif", ".tiff"),  # Aperio, Philips, Trestle, Ventana, generic pyramids
        *(".ndpi", ".vms", ".vmu"),  # Hamamatsu
        *(".mrxs", ".scn", ".bif", ".svslide"),  # MIRAX, Leica, Ventana, Sakura
        *(".dcm", ".dicom"),
    )
)

Decode = Literal["auto", "direct", "openslide", "dct"]


@register("reader", "openslide")
@dataclass(frozen=True, kw_only=True)
class OpenSlideReader:
    """SVS, NDPI, MRXS, SCN, VMS, BIF, Philips, Trestle, DICOM and pyramidal TIFF, with OpenSlide.

    Args:
        priority: See :class:`histotl.wsi.readers.base.Reader`.
        decode: Who decodes pixels. ``auto``: tiles are read directly, several times faster, where that gives the very
            pixels of OpenSlide, which does the rest. ``direct``: the same, but a level that cannot be read directly is
            an error. ``openslide``: always OpenSlide. ``dct``: as ``auto``, with further levels that shrink JPEG tiles
            2, 4 or 8 times while decoding (scaled inverse DCT). Against decoding in full and averaging blocks, on a
            scanned H&E slide (RGB JPEG, quality 30) that is off by 0.10, 0.07 and 0.07 levels of 255 on average and
            by 19, 9 and 4 at most; on H&E with colours at half resolution (4:2:0, quality 80) by 0.51, 0.56 and 0.46
            on average and by 10, 6 and 3 at most.
    """

    priority: int = 100
    decode: Decode = "auto"

    def __post_init__(self) -> None:
        if self.decode not in get_args(Decode):
            known = ", ".join(get_args(Decode))
            raise UsageError(f"openslide(decode={self.decode!r})", hint=f"decode is one of {known}")

    def claims(self, path: Path) -> bool:
        """By suffix: OpenSlide's own test opens the file, which is done soon enough."""
        return path.suffix.lower() in SUFFIXES

    def open(self, path: Path) -> OpenSlideBackend:
        """Open a slide; see :class:`histotl.wsi.readers.base.Reader`."""
        return OpenSlideBackend(path, self.decode)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Index:
    """What is known of a file once it was opened: immutable, and shared by all who have it open.

    Args:
        info: As OpenSlide says.
        plans: How to read each level directly.
        state: Size and time of change of the file that all this was read from.
    """

    info: SlideInfo
    plans: Sequence[LevelPlan]
    state: tuple[int, int]


class OpenSlideBackend:
    """A slide held open by OpenSlide, by direct access to its tiles, or both.

    Args:
        path: The file.
        decode: See :class:`OpenSlideReader`.

    Raises:
        SlideOpenError: OpenSlide cannot open it; or a level cannot be read directly though that was asked for.
        MissingDependencyError: OpenSlide itself cannot be loaded.
    """

    def __init__(self, path: Path, decode: Decode = "auto") -> None:
        self._path, self._decode = path, decode
        self._index, self._slide = _indexed(path, always_openslide=decode == "openslide")
        self._info, self._plans = self._index.info, self._index.plans
        self._file: FilePerThread | None = None
        self._regions: dict[int, TileRegions] = {}
        self._frames: Sequence[DicomLevel | str] | None = None
        if decode == "dct":
            self._info, self._plans = with_scaled_levels(self._info, self._plans)
        if decode in ("dct", "openslide"):
            # Features of other pixels are other features, so the reader's name in their identity says so.
            self._info = replace(self._info, reader=str(Spec("openslide", {"decode": decode})))
        if decode == "direct":
            self._refuse_what_is_not_direct()

    @property
    def info(self) -> SlideInfo:
        """Geometry and pixel size as the file has them."""
        return self._info

    def read_region(self, x_l0: int, y_l0: int, level: int, width: int, height: int) -> Pixels:
        """Decode a rectangle of one level; see :class:`histotl.wsi.readers.base.SlideBackend`."""
        scale_x, scale_y = level_scale(self._info, level)
        left, top = round_px(x_l0 / scale_x), round_px(y_l0 / scale_y)
        tiled = self.tiled(level) is not None
        try:
            region = self._regions[level].read(left, top, width, height) if tiled else None
            return self._through_openslide(level, left, top, width, height) if region is None else region
        except SlideReadError as error:
            fact = f"{self._path.name}: region x={x_l0} y={y_l0} of level {level} cannot be decoded"
            raise SlideReadError(
                f"{fact}: {error.message.removeprefix(f'{self._path.name}: ')}", hint=error.hint
            ) from error

    def tiled(self, level: int) -> TiledLevel | None:
        """Direct access to the compressed tiles of a level; None where OpenSlide decodes it."""
        if level not in self._regions:
            found = self._dicom_tiles(level) if self._info.vendor == "dicom" else self._find_tiles(self._plans[level])
            if found is None:
                return None
            self._regions[level] = TileRegions(found)
        return self._regions[level].level

    def level_means(self, level: int, times: int, *, draft: bool = False) -> Pixels | None:
        """A level shrunk tile by tile; a draft by JPEG's own transform. See :class:`ShrinksLevels` of the contract."""
        found = self._info.levels[level]
        if draft:
            return self._draft(self._plans[level], times, found.width // times, found.height // times)
        return None if self.tiled(level) is None else self._regions[level].means(found.width, found.height, times)

    def decoding(self, level: int) -> str:
        """How a level is decoded, in words; with the reason where that is through OpenSlide."""
        tiles = self.tiled(level)
        if tiles is None:
            return f"through OpenSlide: {self._reason(level)}"
        decoder, factor = self._plans[level].decoder, self._plans[level].factor
        words = f"direct: {decoder.words if decoder else _dicom_words(tiles)}"
        missing = int(np.count_nonzero(~tiles.present))
        shrunk = f", shrunk {factor} times by the inverse transform of JPEG" if factor > 1 else ""
        return words + shrunk + (f"; {missing} missing tiles through OpenSlide" if missing else "")

    def close(self) -> None:
        """Give the files back; calling twice does no harm."""
        if self._slide is not None:
            self._slide.close()
            self._slide = None
        if self._file is not None:
            self._file.close()
            self._file = None
        for frames in self._frames or ():
            if not isinstance(frames, str):
                frames.close()
        self._regions, self._frames = {}, None

    def _draft(self, plan: LevelPlan, times: int, width: int, height: int) -> Pixels | None:
        if plan.factor > 1 or plan.decoder is None or plan.decoder.scaled is None or times not in FACTORS:
            return None
        tiles = self._find_tiles(replace(plan, factor=times))
        return None if tiles is None or min(width, height) < 1 else TileRegions(tiles).read(0, 0, width, height)

    def _dicom_tiles(self, level: int) -> TiledLevel | None:
        frames = "" if self._decode == "openslide" else self._dicom()[level]
        return None if isinstance(frames, str) else frames

    def _find_tiles(self, plan: LevelPlan) -> TiledLevel | None:
        if self._decode == "openslide":
            return None
        if plan.page is None or plan.decoder is None:
            return None
        if self._file is None:
            self._file = FilePerThread(self._path, self._index.state)
        return TiffTiles(plan.page, self._file, plan.decoder.codec_for(plan.factor), plan.factor)

    def _dicom(self) -> Sequence[DicomLevel | str]:
        if self._frames is None:
            from histotl.wsi.readers._dicom_frames import dicom_levels_or_reasons

            self._frames = dicom_levels_or_reasons(self._path, self._info)
        return self._frames

    def _reason(self, level: int) -> str:
        if self._decode == "openslide":
            return "as asked for"
        frames = self._dicom()[level] if self._info.vendor == "dicom" else ""
        return frames if isinstance(frames, str) and frames else self._plans[level].reason

    def _refuse_what_is_not_direct(self) -> None:
        for level, size in enumerate(self._info.levels):
            if self.tiled(level) is None:
                fact = f"{self._path.name}: level {level} ({size.width}x{size.height} px) cannot be decoded directly"
                why = self._reason(level)
                self.close()
                raise SlideOpenError(f"{fact}: {why}", hint="use openslide(decode='auto'): OpenSlide decodes the rest")

    def _through_openslide(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        """A rectangle in pixels of the level, decoded by OpenSlide; averaged where the level is a shrunk one."""
        from openslide import OpenSlideError

        plan = self._plans[level]
        if plan.factor > 1:
            return self._averaged(plan, left, top, width, height)
        if self._slide is None:
            self._slide = _open(self._path)
        downsample = self._info.levels[level].downsample
        # OpenSlide uses one factor for both axes: name the pixel of the level by that factor.
        corner = (round_px(left * downsample), round_px(top * downsample))
        try:
            rgba = self._slide.read_region(corner, plan.real, (width, height))
        except OpenSlideError as error:
            # The first error makes a handle useless for good; the next read gets a new one.
            self._slide.close()
            self._slide = None
            raise SlideReadError(one_line(error), hint=CURE_DAMAGED) from error
        return composite(np.asarray(rgba), self._info.background)

    def _averaged(self, plan: LevelPlan, left: int, top: int, width: int, height: int) -> Pixels:
        """A rectangle of a shrunk level that has missing tiles: means over the level that OpenSlide decodes."""
        times, real = (
            plan.factor,
            next(index for index, other in enumerate(self._plans) if other.real == plan.real and other.factor == 1),
        )
        fine = self._through_openslide(real, left * times, top * times, width * times, height * times)
        means = fine.reshape(height, times, width, times, 3).mean((1, 3))
        rounded: Pixels = np.floor(means + 0.5).astype(np.uint8)
        return rounded


_known: weakref.WeakValueDictionary[tuple[str, int, int], _Index] = weakref.WeakValueDictionary()
_known_lock = threading.Lock()


def _indexed(path: Path, *, always_openslide: bool) -> tuple[_Index, OpenSlide | None]:
    """What is known of a file, and OpenSlide's handle if it had to be opened for that.

    Copies of a slide in other threads find what the first one parsed; a changed file is another file.
    """
    try:
        state = state_of(path.stat())
    except OSError as error:
        raise SlideOpenError(f"{path.name}: {one_line(error)}", hint="check the path") from error
    key = (str(path), *state)
    with _known_lock:
        found = _known.get(key)
    if found is not None:
        return found, None
    known = None if always_openslide else aperio_slide(path)
    slide = None
    if known is None:
        slide = _open(path)
        info = describe(path, slide)
        known = info, plan_levels(path, info, slide.properties)
    index = _Index(info=known[0], plans=known[1], state=state)
    # Formats of several files may change without this one changing.
    if any(plan.page is not None for plan in index.plans):
        with _known_lock:
            _known[key] = index
    return index, slide


def _open(path: Path) -> OpenSlide:
    try:
        import openslide
    except (ImportError, OSError) as error:
        cure = "pip install openslide-python openslide-bin"
        raise MissingDependencyError(f"OpenSlide cannot be loaded: {one_line(error)}", hint=cure) from error
    try:
        return openslide.OpenSlide(path)
    except (openslide.OpenSlideError, OSError) as error:
        cure = "copy the file again from where it came; convert other formats to pyramidal TIFF"
        raise SlideOpenError(f"{path.name}: {one_line(error)}", hint=cure) from error


def _dicom_words(tiles: TiledLevel) -> str:
    """How the frames of a DICOM level are coded."""
    from histotl.wsi.readers._dicom_frames import DicomLevel  # needed for few slides

    return f"DICOM {tiles.words}" if isinstance(tiles, DicomLevel) else "DICOM frames"
