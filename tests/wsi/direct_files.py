"""Writers of odd whole-slide TIFFs, for the tests of direct access."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import simplejpeg
import tifffile
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Encode = Callable[[Pixels], bytes]

CHROMA = {"420": (2, 2), "422": (2, 1), "444": (1, 1)}
JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"


def content(width: int, height: int, kind: str = "both") -> Pixels:
    """Smooth colours, noise, or noise on the right half of smooth colours."""
    rng = np.random.default_rng(width * height)
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([128 + 90 * np.sin(x / 37 + k) * np.cos(y / 23 - k) for k in range(3)], axis=-1)
    image = smooth.astype(np.uint8)
    noisy = {"smooth": width, "noise": 0, "both": width // 2}[kind]
    image[:, noisy:] = rng.integers(0, 256, (height, width - noisy, 3))
    return image


def jpeg_ycbcr(chroma: str = "420", quality: int = 80) -> Encode:
    return lambda tile: simplejpeg.encode_jpeg(tile, quality=quality, colorsubsampling=chroma)


def jpeg_progressive(tile: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(tile).save(stream, "jpeg", quality=80, subsampling=2, progressive=True)
    return stream.getvalue()


def jpeg_own_tables(tile: Pixels) -> bytes:
    """With Huffman tables made for this tile, so that the header of each is another."""
    stream = io.BytesIO()
    Image.fromarray(tile).save(stream, "jpeg", quality=80, subsampling=2, optimize=True)
    return stream.getvalue()


def jpeg_rgb(tile: Pixels) -> bytes:
    """RGB stored as it is, as Aperio does, with the marker that says so."""
    return bytes(imagecodecs.jpeg8_encode(tile, level=80, colorspace="rgb", outcolorspace="rgb"))


def jpeg_rgb_called_jfif(tile: Pixels) -> bytes:
    """RGB whose own header claims YCbCr; only the TIFF knows better."""
    data = without(jpeg_rgb(tile), 0xEE)
    return data[:2] + JFIF + data[2:]


def segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, segment) of a JPEG header, the start of the scan included."""
    position = 2
    while True:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        yield marker, data[position : position + 2 + length]
        position += 2 + length
        if marker == 0xDA:
            return


def without(data: bytes, *markers: int) -> bytes:
    """A JPEG stream without some segments of its header."""
    found = list(segments(data))
    head = sum(len(segment) for _, segment in found)
    return data[:2] + b"".join(segment for marker, segment in found if marker not in markers) + data[2 + head :]


def tables_of(data: bytes) -> bytes:
    """The quantization and Huffman tables of a stream, as an abbreviated one."""
    kept = b"".join(segment for marker, segment in segments(data) if marker in (0xDB, 0xC4))
    return b"\xff\xd8" + kept + b"\xff\xd9"


def tiles(image: Pixels, size: tuple[int, int], encode: Encode, missing: Sequence[int] = ()) -> Iterator[bytes]:
    """Encoded tiles row by row; what overhangs repeats the edge."""
    across, down = size
    number = 0
    for y in range(0, image.shape[0], down):
        for x in range(0, image.shape[1], across):
            tile = image[y : y + down, x : x + across]
            tile = np.pad(tile, ((0, down - tile.shape[0]), (0, across - tile.shape[1]), (0, 0)), mode="edge")
            yield b"" if number in missing else encode(np.ascontiguousarray(tile))
            number += 1


def write_tiled(
    path: Path,
    levels: Sequence[Pixels],
    encode: Encode,
    *,
    tile: tuple[int, int] = (256, 256),
    vendor: str = "aperio",
    photometric: str = "ycbcr",
    chroma: str = "420",
    tables: bytes | None = None,
    missing: Sequence[int] = (),
    compression: int | None = None,
    bigtiff: bool = False,
    byteorder: str = "<",
) -> Path:
    """A pyramid of tiles that are encoded here.

    Args:
        path: The file.
        levels: Pictures, finest first.
        encode: Encodes a tile.
        tile: (width, height) of a tile.
        vendor: ``aperio`` or ``generic-tiff``.
        photometric: Of the TIFF.
        chroma: Subsampling in the TIFF's tag.
        tables: JPEGTables of all pages.
        missing: Numbers of tiles of level 0 to leave out.
        compression: TIFF tag 259 to set instead of JPEG.
        bigtiff: 64-bit offsets.
        byteorder: ``<`` or ``>``.
    """
    described = f"Aperio Image Library (test)\r\n{levels[0].shape[1]}x{levels[0].shape[0]}|MPP = 0.5"
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as tif:
        for index, image in enumerate(levels):
            tif.write(
                tiles(image, tile, encode, missing if index == 0 else ()),
                shape=image.shape,
                dtype=np.uint8,
                tile=tile[::-1],
                photometric=photometric,
                compression="jpeg",
                subsampling=CHROMA[chroma] if photometric == "ycbcr" else None,
                compressionargs={"outcolorspace": photometric},  # else photometric="rgb" becomes YCbCr
                jpegtables=tables,
                description=described if vendor == "aperio" else None,
                subfiletype=int(index > 0 and vendor != "aperio"),
                resolution=(20_000, 20_000),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
            if index == 0 and vendor == "aperio":
                tif.write(image[:64, :64], photometric="rgb", compression="jpeg", rowsperstrip=64, metadata=None)
    if compression is not None:
        with tifffile.TiffFile(path, mode="r+b") as tif:
            for page in tif.pages:
                if page.is_tiled:
                    page.tags["Compression"].overwrite(compression)
    return path


def tile_bytes(path: Path, page: int, tile: int) -> tuple[int, int]:
    """(offset, length) of a tile in the file."""
    with tifffile.TiffFile(path) as tif:
        return tif.pages[page].dataoffsets[tile], tif.pages[page].databytecounts[tile]


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def write_philips(path: Path, levels: Sequence[Pixels], tile_px: int, missing: Sequence[int] = ()) -> Path:
    """A Philips TIFF: every page is filled up to whole tiles, and the description says the true scale."""

    def attribute(name: str, value: str, kind: str) -> str:
        return f'<Attribute Name="{name}" Group="0x0028" Element="0x0030" PMSVR="{kind}">{value}</Attribute>'

    def spacing(index: int) -> str:
        return attribute("DICOM_PIXEL_SPACING", f'"{0.00025 * 2**index}" "{0.00025 * 2**index}"', "IDoubleArray")

    parts = [
        f'<DataObject ObjectType="PixelDataRepresentation">{spacing(index)}'
        + attribute("PIIM_PIXEL_DATA_REPRESENTATION_NUMBER", str(index), "IUInt16")
        + "</DataObject>"
        for index in range(len(levels))
    ]
    scanned = attribute("PIM_DP_IMAGE_TYPE", "WSI", "IString") + attribute(
        "PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE", f"<Array>{''.join(parts)}</Array>", "IDataObjectArray"
    )
    images = f'<Array><DataObject ObjectType="DPScannedImage">{scanned}</DataObject></Array>'
    xml = f'<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">{spacing(0)}'
    xml += attribute("PIM_DP_SCANNED_IMAGES", images, "IDataObjectArray") + "</DataObject>"
    with tifffile.TiffWriter(path) as tif:
        for index, image in enumerate(levels):
            rows, columns = (-(-side // tile_px) for side in image.shape[:2])
            tif.write(
                tiles(image, (tile_px, tile_px), jpeg_ycbcr(), missing if index == 0 else ()),
                shape=(rows * tile_px, columns * tile_px, 3),
                dtype=np.uint8,
                tile=(tile_px, tile_px),
                photometric="ycbcr",
                compression="jpeg",
                subsampling=(2, 2),
                software="Philips DP v1.0",
                description=xml if index == 0 else f"level={index}",
                subfiletype=int(index > 0),
                metadata=None,
            )
    return path


def write_ndpi(path: Path, levels: Sequence[Pixels], subsampling: int, blocks: int) -> Path:
    """A Hamamatsu NDPI: one JPEG a page with restart markers every few blocks, and 64-bit links between pages."""
    out, link = bytearray(b"II*\0" + bytes(8)), 4
    for index, image in enumerate(levels):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "jpeg", quality=80, subsampling=subsampling, restart_marker_blocks=blocks)
        data = stream.getvalue()
        first = 2 + sum(len(segment) for _, segment in segments(data))
        marks = [at + 2 for at in range(first, len(data) - 1) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
        starts, at = [first, *marks], {}
        for name, value in (
            ("jpeg", data),
            ("starts", struct.pack(f"<{len(starts)}I", *starts)),
            ("bits", struct.pack("<3H", 8, 8, 8)),
            ("make", b"Hamamatsu\0"),
            ("resolution", struct.pack("<2I", 20_000, 1)),
        ):
            at[name] = len(out)
            out += value + bytes(len(value) % 2)
        lens = struct.unpack("<I", struct.pack("<f", 20.0 / 2**index))[0]
        height, width = image.shape[:2]
        entries = [
            *((256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, at["bits"]), (259, 3, 1, 7), (262, 3, 1, 6)),
            *((271, 2, 10, at["make"]), (273, 4, 1, at["jpeg"]), (277, 3, 1, 3), (278, 4, 1, height)),
            *((279, 4, 1, len(data)), (282, 5, 1, at["resolution"]), (283, 5, 1, at["resolution"]), (284, 3, 1, 1)),
            *((296, 3, 1, 3), (65420, 4, 1, 1), (65421, 11, 1, lens), (65424, 9, 1, 0)),
            (65426, 4, len(starts), at["starts"]),
        ]
        struct.pack_into("<Q", out, link, len(out))
        out += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        link = len(out)
        out += bytes(8 + 4 * len(entries))
    path.write_bytes(out)
    return path
