"""Decoders of DICOM frames: JPEG, JPEG 2000 and plain RGB, with the colour model that the file's attributes name."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from histotl.wsi.readers._dicom_header import JPEG, JPEG2000, NATIVE, DicomImage
from histotl.wsi.readers._jpeg import RGB, YCBCR, JpegCodec
from histotl.wsi.readers._tiled import Codec
from histotl.wsi.readers.base import Pixels

_SIZ = struct.Struct(">2s2s2x2x8IH")
"""Start of a JPEG 2000 codestream: marks, grid of image and tiles, number of components (ISO/IEC 15444-1 A.5.1)."""

_RGB_OF_8_BITS = b"\x07\x01\x01" * 3
"""Three components of 8 unsigned bits, none subsampled."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameCoding:
    """How the frames of a file are coded.

    Args:
        codec: Decodes one.
        look: Says how, such as ``JPEG 256×256, RGB 4:4:4``, from a frame's header; ValueError where it is another kind.
    """

    codec: Codec
    look: Callable[[bytes], str]


def coding_of(image: DicomImage) -> FrameCoding:
    """The coding of a file's frames, by its attributes.

    Raises:
        ValueError: A combination of coding and colour model that OpenSlide does not read either.
    """
    width, height = size = image.tile_size
    colours = {"RGB": "RGB", "YBR_FULL_422": "YCbCr", "YBR_ICT": "RGB", "YBR_RCT": "RGB"}.get(image.photometric, "")
    if image.syntax == JPEG and image.photometric in ("RGB", "YBR_FULL_422"):
        # The attribute decides, whatever markers or names of components the stream itself has.
        whole = JpegCodec(tables=b"", photometric=RGB if image.photometric == "RGB" else YCBCR, size=size)

        def look(data: bytes) -> str:
            return f"JPEG {width}×{height}, {colours} {whole.header(data).subsampling}"

        return FrameCoding(codec=whole, look=look)
    if image.syntax in JPEG2000 and colours == "RGB":
        jpeg2000 = _Jpeg2000Codec(size=size)
        return FrameCoding(codec=jpeg2000, look=jpeg2000.look)
    if image.syntax == NATIVE and image.photometric == "RGB":
        native = _NativeCodec(size=size)
        return FrameCoding(codec=native, look=native.look)
    raise ValueError(f"frames of {image.photometric or 'unknown'} colour in transfer syntax {image.syntax}")


@dataclass(frozen=True, kw_only=True)
class _Jpeg2000Codec:
    """Bare codestreams; the multiple component transform is undone by the decoder and gives RGB."""

    size: tuple[int, int]

    def look(self, data: bytes) -> str:
        if len(data) < _SIZ.size + len(_RGB_OF_8_BITS):
            raise ValueError("the JPEG 2000 header is cut off")
        start, mark, right, lower, left, upper, *_, components = _SIZ.unpack_from(data)
        if (start, mark) != (b"\xff\x4f", b"\xff\x51"):
            raise ValueError(f"not a JPEG 2000 codestream, it begins with {data[:4].hex()}")
        kinds = data[_SIZ.size : _SIZ.size + len(_RGB_OF_8_BITS)]
        if (right, lower, left, upper, components) != (*self.size, 0, 0, 3) or kinds != _RGB_OF_8_BITS:
            found = f"{components} components of {right - left}x{lower - upper} px, kinds {kinds.hex()}"
            raise ValueError(f"JPEG 2000 of {found}; wanted is RGB of {self.size[0]}x{self.size[1]} px")
        return f"JPEG 2000 {self.size[0]}×{self.size[1]}, RGB"

    def decode(self, data: bytes, out: Pixels | None) -> Pixels:
        import imagecodecs

        self.look(data)
        pixels = np.empty((self.size[1], self.size[0], 3), np.uint8) if out is None else out
        imagecodecs.jpeg2k_decode(data, out=pixels, numthreads=1)
        return pixels


@dataclass(frozen=True, kw_only=True)
class _NativeCodec:
    """Bytes of red, green and blue, pixel by pixel."""

    size: tuple[int, int]

    def look(self, data: bytes) -> str:
        if len(data) != 3 * self.size[0] * self.size[1]:
            raise ValueError(f"{len(data)} bytes for {self.size[0]}x{self.size[1]} px of RGB")
        return f"uncompressed {self.size[0]}×{self.size[1]}, RGB"

    def decode(self, data: bytes, out: Pixels | None) -> Pixels:
        self.look(data)
        pixels = np.empty((self.size[1], self.size[0], 3), np.uint8) if out is None else out
        pixels[:] = np.frombuffer(data, np.uint8).reshape(pixels.shape)
        return pixels
