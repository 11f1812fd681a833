"""Which decoder gives a TIFF page's pixels exactly, or the reason why none does."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from histotl.wsi.readers._ifd import TiffPage
from histotl.wsi.readers._jpeg import RGB, YCBCR, JpegCodec, JpegError
from histotl.wsi.readers._tiled import Codec
from histotl.wsi.readers.base import Pixels

JPEG, JPEG2000_YCBCR, JPEG2000_RGB = 7, 33003, 33005
_LOSSLESS = {1: "uncompressed", 5: "LZW", 8: "deflate", 32946: "deflate", 32773: "PackBits", 50000: "Zstandard"}
_IMAGECODECS = dict.fromkeys((8, 32946), "zlib_decode") | {
    5: "lzw_decode",
    32773: "packbits_decode",
    50000: "zstd_decode",
}
FACTORS = (2, 4, 8)
"""How many times libjpeg's inverse transform can shrink a block of 8 pixels."""

_PROBES = 4
"""Tiles that are looked at to find out how a page is coded; more than one since any may be damaged."""


class Unsuitable(Exception):  # noqa: N818 - not an error, an answer
    """No exact direct decoder; its text is the reason."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoder:
    """How to decode the tiles of one page.

    Args:
        codec: Decodes a tile.
        words: Says how, such as ``JPEG 256×256, YCbCr 4:2:0``.
        scaled: Makes the codec that also shrinks 2, 4 or 8 times; None where there is none.
    """

    codec: Codec
    words: str
    scaled: Callable[[int], Codec] | None = None

    def codec_for(self, factor: int) -> Codec:
        """The codec that shrinks so many times."""
        return self.codec if factor == 1 or self.scaled is None else self.scaled(factor)


def decoder_for(page: TiffPage, read: Callable[[int, int], bytes]) -> Decoder:
    """The decoder of a page.

    Args:
        page: The page.
        read: Gives bytes of the file for (offset, size).

    Raises:
        Unsuitable: There is none that gives the same pixels as OpenSlide.
    """
    _check_layout(page)
    if page.compression == JPEG:
        return _jpeg(page, read)
    if page.compression in (JPEG2000_YCBCR, JPEG2000_RGB):
        return _jpeg2000(page, read)
    if page.compression not in _LOSSLESS:
        raise Unsuitable(f"TIFF compression {page.compression}")
    if page.photometric != RGB:
        raise Unsuitable(f"TIFF photometric interpretation {page.photometric}")
    if page.predictor not in (1, 2):
        raise Unsuitable(f"TIFF predictor {page.predictor}")
    return Decoder(codec=LosslessCodec(page), words=_words(page, _LOSSLESS[page.compression], "RGB"))


def _check_layout(page: TiffPage) -> None:
    tiles = page.shape[0] * page.shape[1]
    faults = {
        f"{page.samples} samples a pixel": page.samples != 3,
        f"{'/'.join(map(str, page.bits))} bits a sample": set(page.bits) != {8},
        "samples that are no unsigned integers": page.sample_format != 1,
        f"planar configuration {page.planar}": page.planar != 1,
        f"orientation {page.orientation}": page.orientation != 1,
        f"fill order {page.fill_order}": page.fill_order != 1,
        f"{len(page.offsets)} tiles where {tiles} are needed": not len(page.offsets) == len(page.counts) == tiles,
        "no tile that could be read": not page.counts.any(),
    }
    found = [fault for fault, true in faults.items() if true]
    if found:
        raise Unsuitable(", ".join(found))


def _words(page: TiffPage, codec: str, colours: str) -> str:
    return f"{codec} {page.tile_width}×{page.tile_height}, {colours}"


def _probe(page: TiffPage, read: Callable[[int, int], bytes], look: Callable[[bytes], str]) -> str:
    """What a look at some tile says; several are tried."""
    present = np.flatnonzero(page.counts > 0)
    reason = ""
    for tile in present[np.linspace(0, len(present) - 1, _PROBES).astype(int)].tolist():
        try:
            return look(read(int(page.offsets[tile]), int(page.counts[tile])))
        except JpegError as error:
            reason = str(error)
    raise Unsuitable(reason)


def _jpeg(page: TiffPage, read: Callable[[int, int], bytes]) -> Decoder:
    colours = {RGB: "RGB", YCBCR: "YCbCr"}.get(page.photometric)
    if colours is None:
        raise Unsuitable(f"JPEG with TIFF photometric interpretation {page.photometric}")

    def codec(factor: int) -> JpegCodec:
        size = (page.tile_width, page.tile_height)
        tables, photometric = page.jpeg_tables, page.photometric
        return JpegCodec(tables=tables, photometric=photometric, size=size, factor=factor, before=page.header)

    whole = codec(1)
    subsampling = _probe(page, read, lambda data: whole.header(page.header + data).subsampling)
    if page.header and subsampling in ("4:2:0", "4:4:0"):
        # OpenSlide itself refuses stretches between restart markers whose colours are subsampled downwards.
        raise Unsuitable(f"NDPI with JPEG {subsampling}")
    # A tile of odd size would be shrunk with a part of a pixel left over, and the next would not fit to it.
    even = page.tile_width % max(FACTORS) == 0 and page.tile_height % max(FACTORS) == 0
    return Decoder(codec=whole, words=_words(page, "JPEG", f"{colours} {subsampling}"), scaled=codec if even else None)


def _jpeg2000(page: TiffPage, read: Callable[[int, int], bytes]) -> Decoder:
    _probe(page, read, lambda data: _jpeg2000_header(data, (page.tile_width, page.tile_height)))
    ycbcr = page.compression == JPEG2000_YCBCR
    return Decoder(codec=Jpeg2000Codec(page), words=_words(page, "JPEG 2000", "YCbCr" if ycbcr else "RGB"))


def _jpeg2000_header(data: bytes, size: tuple[int, int]) -> str:
    """Refuse a codestream of another size or kind, by its SIZ segment (ISO/IEC 15444-1 A.5.1)."""
    if data[:4] != b"\xff\x4f\xff\x51" or len(data) < 51:
        raise JpegError(f"not a JPEG 2000 codestream, it begins with {data[:4].hex() or 'nothing'}")
    x1, y1, x0, y0 = struct.unpack_from(">4I", data, 8)
    (components,) = struct.unpack_from(">H", data, 40)
    if (x1 - x0, y1 - y0) != size or components != 3:
        fact = f"the JPEG 2000 is {x1 - x0}x{y1 - y0} px of {components} component(s)"
        raise JpegError(f"{fact}, the tile {size[0]}x{size[1]} of 3")
    if data[42:51] != b"\7\1\1" * 3:
        raise JpegError("JPEG 2000 with subsampled colours or other than 8 bits")
    return "4:4:4"


class LosslessCodec:
    """Uncompressed, LZW, deflate, PackBits and Zstandard tiles.

    Args:
        page: The page.
    """

    def __init__(self, page: TiffPage) -> None:
        self._compression, self._predictor = page.compression, page.predictor
        self._decoder = _IMAGECODECS.get(page.compression, "")
        self._shape = (page.tile_height, page.tile_width, 3)
        self._bytes = page.tile_height * page.tile_width * 3

    def decode(self, data: bytes, out: Pixels | None) -> Pixels:
        """Decode a tile; raises ValueError or RuntimeError on damaged bytes."""
        import imagecodecs

        raw = data if self._compression == 1 else getattr(imagecodecs, self._decoder)(data, out=self._bytes)
        if len(raw) < self._bytes:
            raise ValueError(f"{len(raw)} bytes of {self._bytes} came out")
        pixels = np.frombuffer(raw, np.uint8, self._bytes).reshape(self._shape)
        result = np.empty(self._shape, np.uint8) if out is None else out
        if self._predictor == 2:
            np.cumsum(pixels, axis=1, dtype=np.uint8, out=result)
        else:
            result[:] = pixels
        return result


class Jpeg2000Codec:
    """JPEG 2000 codestreams as Aperio writes them.

    Args:
        page: The page.
    """

    def __init__(self, page: TiffPage) -> None:
        self._size = (page.tile_width, page.tile_height)
        self._ycbcr = page.compression == JPEG2000_YCBCR

    def decode(self, data: bytes, out: Pixels | None) -> Pixels:
        """Decode a tile; raises ValueError or RuntimeError on damaged bytes."""
        import imagecodecs

        _jpeg2000_header(data, self._size)
        pixels: Pixels = imagecodecs.jpeg2k_decode(data)
        if self._ycbcr:
            pixels = ycbcr_to_rgb(pixels)
        if out is None:
            return pixels
        out[:] = pixels
        return out


def ycbcr_to_rgb(pixels: Pixels) -> Pixels:
    """Full-range YCbCr (ITU-T T.871 §7) to RGB, rounded as OpenSlide does.

    Args:
        pixels: uint8 (h, w, 3).

    Returns:
        uint8 (h, w, 3).
    """
    y = pixels[..., 0].astype(np.int16)
    cb, cr = pixels[..., 1], pixels[..., 2]
    red, green, blue = _RED_OF_CR[cr], _GREEN_OF_CB_CR[cb, cr], _BLUE_OF_CB[cb]
    return np.stack([y + red, y + green, y + blue], axis=-1).clip(0, 255).astype(np.uint8)


def _rounded(factor: float) -> npt.NDArray[np.int16]:
    """A factor times all centred values of a colour channel, with 16 binary places as in JPEG decoders."""
    return ((round(factor * 65_536) * _CENTRED + 32_768) >> 16).astype(np.int16)


_CENTRED = np.arange(-128, 128)
_RED_OF_CR, _BLUE_OF_CB = _rounded(1.402), _rounded(1.772)
# In decimal places: two rounded products would differ by a level at a few hundred of the 65,536 pairs.
_GREEN_OF_CB_CR = ((50_000 - 34_414 * _CENTRED[:, None] - 71_414 * _CENTRED) // 100_000).astype(np.int16)
