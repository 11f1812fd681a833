"""Direct access to DICOM frames against OpenSlide, on files written here byte by byte."""

from __future__ import annotations

import io
import struct
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import openslide
import pytest
import simplejpeg
from PIL import Image

from histotl.core.errors import SlideReadError, UsageError
from histotl.core.values import Level, SlideInfo
from histotl.wsi._dicom import ElementReader
from histotl.wsi.readers._dicom_frames import DicomLevel, dicom_levels, dicom_levels_or_reasons

Pixels = npt.NDArray[np.uint8]
JPEG, LOSSLESS, LOSSY, NATIVE = (f"1.2.840.10008.1.2.{tail}" for tail in ("4.50", "4.90", "4.91", "1"))
UNDEFINED = 0xFFFFFFFF
TILE = 64


def element(tag: int, vr: str, value: bytes | str | int, length: int | None = None) -> bytes:
    """A data element in explicit VR little endian."""
    if isinstance(value, int):
        value = struct.pack({"US": "<H", "UL": "<I", "SL": "<i"}[vr], value)
    if isinstance(value, str):
        value = value.encode()
    value += (b"\0" if vr in ("UI", "OB", "OV", "OW") else b" ") * (len(value) % 2)
    count = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    head += struct.pack("<HI", 0, count) if vr in ("OB", "OW", "OV", "SQ", "UN") else struct.pack("<H", count)
    return head + value


def mark(tag: int, length: int = 0) -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, length)


def sequence(tag: int, items: Sequence[bytes], *, defined: bool) -> bytes:
    """A sequence whose items and end are given by lengths, or by marks."""
    if defined:
        return element(tag, "SQ", b"".join(mark(0xFFFEE000, len(item)) + item for item in items))
    body = b"".join(mark(0xFFFEE000, UNDEFINED) + item + mark(0xFFFEE00D) for item in items)
    return element(tag, "SQ", body + mark(0xFFFEE0DD), UNDEFINED)


@dataclass(frozen=True, kw_only=True)
class Dicom:
    """A whole-slide file to be written."""

    frames: Sequence[bytes]
    size: tuple[int, int]
    syntax: str = JPEG
    photometric: str = "YBR_FULL_422"
    organization: str | None = "TILED_FULL"
    places: Sequence[tuple[int, int]] | None = None
    table: str = "basic"
    fragments: int = 1
    defined: bool = True
    series: str = "1.2.3"
    instance: str = "1.2.3.4"
    image_type: str = "ORIGINAL\\PRIMARY\\VOLUME\\NONE"
    tile: int = TILE
    number_of_frames: int | None = None
    also: dict[int, bytes] = field(default_factory=dict)
    """Further elements, or other ones in the place of those below."""

    def write(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.data())
        return path

    def data(self) -> bytes:
        meta = element(0x00020001, "OB", b"\0\1") + element(0x00020002, "UI", "1.2.840.10008.5.1.4.1.1.77.1.6")
        meta += element(0x00020003, "UI", self.instance) + element(0x00020010, "UI", self.syntax)
        elements = self.attributes() | self.pixels() | self.also
        data = bytes(128) + b"DICM" + element(0x00020000, "UL", len(meta)) + meta
        return data + b"".join(elements[tag] for tag in sorted(elements))

    def attributes(self) -> dict[int, bytes]:
        frames = len(self.frames) if self.number_of_frames is None else self.number_of_frames
        texts = {
            0x00080008: ("CS", self.image_type),
            0x00080018: ("UI", self.instance),
            0x0020000E: ("UI", self.series),
            0x00280004: ("CS", self.photometric),
            0x00280008: ("IS", str(frames)),
        }
        if self.organization is not None:
            texts[0x00209311] = ("CS", self.organization)
        numbers = dict.fromkeys((0x00280006, 0x00280103), 0) | dict.fromkeys((0x00280100, 0x00280101), 8)
        numbers |= {0x00280002: 3, 0x00280102: 7, 0x00280010: self.tile, 0x00280011: self.tile}
        found = {tag: element(tag, vr, text) for tag, (vr, text) in texts.items()}
        found |= {tag: element(tag, "US", value) for tag, value in numbers.items()}
        for tag, total in zip((0x00480006, 0x00480007), self.size, strict=True):
            found[tag] = element(tag, "UL", total)
        spacing = [element(0x00280030, "DS", "0.0005\\0.0005")]
        shared = sequence(0x00289110, spacing, defined=self.defined)
        found[0x52009229] = sequence(0x52009229, [shared], defined=self.defined)
        # Binary bytes that look like marks and positions must not be taken for such.
        decoy = element(0x00420011, "OB", mark(0xFFFEE0DD) + element(0x0048021E, "SL", 7))
        found[0x00480105] = sequence(0x00480105, [decoy, decoy], defined=self.defined)
        if self.places is not None:
            found[0x52009230] = sequence(0x52009230, [self.place(*at) for at in self.places], defined=self.defined)
        return found

    def place(self, column: int, row: int) -> bytes:
        """Functional groups of a frame; an odd text makes items differ in length."""
        content = sequence(0x00209111, [element(0x00209157, "UL", b"\1\0\0\0\2\0\0\0")], defined=self.defined)
        position = element(0x0040072A, "DS", f"{column * 0.25:g}") + element(0x0048021E, "SL", column)
        return content + sequence(0x0048021A, [position + element(0x0048021F, "SL", row)], defined=self.defined)

    def pixels(self) -> dict[int, bytes]:
        if self.syntax == NATIVE:
            return {0x7FE00010: element(0x7FE00010, "OB", b"".join(self.frames))}
        packed, offsets = io.BytesIO(), []
        for frame in self.frames:
            offsets.append(packed.tell())
            length = max(2, len(frame) // self.fragments // 2 * 2) if self.fragments > 1 else len(frame)
            for start in range(0, len(frame), length):
                part = frame[start : start + length]
                part += b"\0" * (len(part) % 2)
                packed.write(mark(0xFFFEE000, len(part)) + part)
        table = np.array(offsets, "<u4").tobytes() if self.table == "basic" else b""
        body = mark(0xFFFEE000, len(table)) + table + packed.getvalue() + mark(0xFFFEE0DD)
        found = {0x7FE00010: element(0x7FE00010, "OB", body, UNDEFINED)}
        if self.table == "extended":
            sizes = np.array([len(frame) for frame in self.frames], "<u8")
            found[0x7FE00001] = element(0x7FE00001, "OV", np.array(offsets, "<u8").tobytes())
            found[0x7FE00002] = element(0x7FE00002, "OV", sizes.tobytes())
        return found


def tiles_of(picture: Pixels, tile: int = TILE) -> list[Pixels]:
    """Tiles row by row; those at the border are filled up."""
    height, width = picture.shape[:2]
    whole = np.pad(picture, ((0, -height % tile), (0, -width % tile), (0, 0)), constant_values=200)
    rows = range(0, height, tile)
    return [np.ascontiguousarray(whole[y : y + tile, x : x + tile]) for y in rows for x in range(0, width, tile)]


def ycbcr(subsampling: str) -> Callable[[Pixels], bytes]:
    return lambda tile: simplejpeg.encode_jpeg(tile, quality=85, colorsubsampling=subsampling)


def rgb(tile: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(tile).save(stream, "JPEG", quality=85, keep_rgb=True)
    return stream.getvalue()


def jpeg2000(*, lossy: bool, transform: bool = True) -> Callable[[Pixels], bytes]:
    def encode(tile: Pixels) -> bytes:
        level = 60 if lossy else 0
        return bytes(imagecodecs.jpeg2k_encode(tile, level, codecformat="j2k", reversible=not lossy, mct=transform))

    return encode


def native(tile: Pixels) -> bytes:
    return tile.tobytes()


@pytest.fixture(scope="module")
def picture(stained: Callable[..., Pixels]) -> Pixels:
    """150 x 200 pixels of texture: 3 x 4 tiles, with parts of tiles at the right and at the bottom."""
    return stained(150, 200, seed=3)


@pytest.fixture(scope="module")
def simple(picture: Pixels) -> Dicom:
    """JPEG 4:2:0 with an offset table."""
    return Dicom(frames=[ycbcr("420")(tile) for tile in tiles_of(picture)], size=(200, 150))


def info_of(path: Path) -> SlideInfo:
    """The levels as OpenSlide has them."""
    with openslide.OpenSlide(path) as slide:
        (width, height), sizes = slide.dimensions, slide.level_dimensions
        pairs = zip(sizes, slide.level_downsamples, strict=True)
        levels = tuple(Level(width=w, height=h, downsample=float(down)) for (w, h), down in pairs)
    words = {"slide_id": path.stem, "reader": "openslide", "vendor": "dicom", "mpp_source": "openslide.mpp-x"}
    numbers: dict[str, Any] = {"mpp_x": 0.5, "mpp_y": 0.5, "bounds_l0": (0, 0, width, height)}
    return SlideInfo(path=path, width=width, height=height, levels=levels, **words, **numbers)


def only_level(path: Path) -> DicomLevel:
    (level,) = dicom_levels_or_reasons(path, info_of(path))
    assert isinstance(level, DicomLevel), level
    return level


def reason(path: Path, info: SlideInfo | None = None) -> str:
    """Why there is no direct access; OpenSlide itself still opens the file unless `info` is given."""
    info = info or info_of(path)
    (level,) = dicom_levels_or_reasons(path, info)
    assert isinstance(level, str), "direct access where there should be none"
    assert dicom_levels(path, info) == [None]
    return level


def same_as_openslide(level: DicomLevel, path: Path, number: int = 0) -> bool:
    """Whether every tile that is present has OpenSlide's pixels, as far as the level reaches."""
    with openslide.OpenSlide(path) as slide:
        width, height = slide.level_dimensions[number]
        expected = np.asarray(slide.read_region((0, 0), number, (width, height)))
    across, down = level.tile_size
    tiles = np.flatnonzero(level.present).tolist()
    out = np.empty((down, across, 3), np.uint8)
    for tile, data in zip(tiles, level.fetch(tiles), strict=True):
        row, column = divmod(tile, level.shape[1])
        part = expected[row * down : (row + 1) * down, column * across : (column + 1) * across]
        decoded = level.decode(tile, data)
        assert level.decode(tile, data, out) is out
        assert np.array_equal(decoded, out)
        if not np.array_equal(decoded[: part.shape[0], : part.shape[1]], part[..., :3]):
            return False
    return bool((expected[..., 3] == 255).all()) or not level.present.all()


CODINGS: dict[str, tuple[Callable[[Pixels], bytes], str, str, str]] = {
    "ycbcr-420": (ycbcr("420"), JPEG, "YBR_FULL_422", "JPEG 64×64, YCbCr 4:2:0"),
    "ycbcr-422": (ycbcr("422"), JPEG, "YBR_FULL_422", "JPEG 64×64, YCbCr 4:2:2"),
    "ycbcr-444": (ycbcr("444"), JPEG, "YBR_FULL_422", "JPEG 64×64, YCbCr 4:4:4"),
    "rgb": (rgb, JPEG, "RGB", "JPEG 64×64, RGB 4:4:4"),
    # The attribute overrules what the stream says of itself.
    "rgb-in-jfif": (ycbcr("444"), JPEG, "RGB", "JPEG 64×64, RGB 4:4:4"),
    "ycbcr-in-adobe": (rgb, JPEG, "YBR_FULL_422", "JPEG 64×64, YCbCr 4:4:4"),
    "lossless": (jpeg2000(lossy=False), LOSSLESS, "YBR_RCT", "JPEG 2000 64×64, RGB"),
    "lossless-rgb": (jpeg2000(lossy=False, transform=False), LOSSLESS, "RGB", "JPEG 2000 64×64, RGB"),
    "lossy": (jpeg2000(lossy=True), LOSSY, "YBR_ICT", "JPEG 2000 64×64, RGB"),
    "native": (native, NATIVE, "RGB", "uncompressed 64×64, RGB"),
}


@pytest.mark.parametrize("name", CODINGS)
def test_the_pixels_of_openslide(name: str, picture: Pixels, tmp_path: Path) -> None:
    encode, syntax, photometric, words = CODINGS[name]
    frames = [encode(tile) for tile in tiles_of(picture)]
    dicom = Dicom(frames=frames, size=(200, 150), syntax=syntax, photometric=photometric)
    level = only_level(dicom.write(tmp_path / "a.dcm"))
    assert (level.tile_size, level.shape, level.words) == ((TILE, TILE), (3, 4), words)
    assert level.present.all()
    assert not level.present.flags.writeable
    assert same_as_openslide(level, tmp_path / "a.dcm")
    if "jfif" not in name and "adobe" not in name:
        first = level.decode(0, level.fetch([0])[0])
        worst = np.abs(first.astype(int) - picture[:TILE, :TILE]).mean()
        assert (
            worst == 0 if name.startswith(("lossless", "native")) else worst < 25
        )  # noise, which subsampling takes away


@pytest.mark.parametrize("table", ["none", "basic", "extended"])
@pytest.mark.parametrize("defined", [True, False])
def test_offset_tables(table: str, defined: bool, simple: Dicom, tmp_path: Path) -> None:
    dicom = replace(simple, table=table, defined=defined)
    level = only_level(dicom.write(tmp_path / "a.dcm"))
    assert same_as_openslide(level, tmp_path / "a.dcm")
    for frame, data in zip(simple.frames, level.fetch(range(12)), strict=True):
        assert data.rstrip(b"\0") == frame.rstrip(b"\0")


@pytest.mark.parametrize("table", ["basic", "extended"])
def test_frames_in_several_fragments(table: str, simple: Dicom, tmp_path: Path) -> None:
    dicom = replace(simple, table=table, fragments=3)
    level = only_level(dicom.write(tmp_path / "a.dcm"))
    assert same_as_openslide(level, tmp_path / "a.dcm")
    whole = only_level(simple.write(tmp_path / "b" / "a.dcm"))
    for tile in (11, 0, 5):  # also the last, behind which no offset stands
        data = level.fetch([tile])[0]
        assert np.array_equal(level.decode(tile, data), whole.decode(tile, whole.fetch([tile])[0]))
    assert "more than 12 items" in reason(replace(dicom, table="none").write(tmp_path / "c" / "a.dcm"))


@pytest.mark.parametrize("organization", ["TILED_SPARSE", "TILED_FULL", None])
@pytest.mark.parametrize("defined", [True, False])
def test_frames_with_positions(organization: str | None, defined: bool, simple: Dicom, tmp_path: Path) -> None:
    order = [7, 0, 11, 3, 2, 5, 4, 10, 8, 9, 1]  # number 6 is missing
    places = [(1 + TILE * (tile % 4), 1 + TILE * (tile // 4)) for tile in order]
    frames = [simple.frames[tile] for tile in order]
    sparse = replace(simple, frames=frames, places=places, organization=organization, defined=defined)
    level = only_level(sparse.write(tmp_path / "a.dcm"))
    assert np.flatnonzero(~level.present).tolist() == [6]
    full = only_level(simple.write(tmp_path / "b" / "a.dcm"))
    for tile, data in zip(order, level.fetch(order), strict=True):
        assert np.array_equal(level.decode(tile, data), full.decode(tile, data))
        assert data == full.fetch([tile])[0]
    if organization != "TILED_FULL":  # a gap in what calls itself full is an error to OpenSlide
        assert same_as_openslide(level, tmp_path / "a.dcm")
    with pytest.raises(UsageError, match="has not"):
        level.fetch([0, 6])


@pytest.mark.parametrize("defined", [True, False])
def test_more_positions_than_one_read_brings(defined: bool, simple: Dicom, tmp_path: Path) -> None:
    """Items of frames lie across the borders of reads, and differ in length."""
    order = np.random.default_rng(0).permutation(400)[:390].tolist()
    places = [(1 + TILE * (tile % 20), 1 + TILE * (tile // 20)) for tile in order]
    frames = [simple.frames[tile % 12] for tile in order]
    size = (20 * TILE - 3, 20 * TILE - 5)
    dicom = replace(simple, frames=frames, places=places, size=size, organization="TILED_SPARSE", defined=defined)
    level = only_level(dicom.write(tmp_path / "a.dcm"))
    assert np.flatnonzero(level.present).tolist() == sorted(order)
    assert same_as_openslide(level, tmp_path / "a.dcm")


def test_levels_are_files_of_one_series(simple: Dicom, stained: Callable[..., Pixels], tmp_path: Path) -> None:
    small = [rgb(tile) for tile in tiles_of(stained(75, 100, seed=5))]
    half = Dicom(frames=small, size=(100, 75), photometric="RGB", instance="1.2.3.5")
    smaller = [native(tile) for tile in tiles_of(stained(37, 50, seed=6))]
    quarter = Dicom(frames=smaller, size=(50, 37), syntax=NATIVE, photometric="RGB", instance="1.2.3.6")
    paths = [half.write(tmp_path / "z.dcm"), simple.write(tmp_path / "m.dcm"), quarter.write(tmp_path / "a")]
    replace(half, instance="1.2.3.7", image_type="ORIGINAL\\PRIMARY\\LABEL\\NONE").write(tmp_path / "label.dcm")
    replace(half, instance="1.2.3.8", image_type="ORIGINAL\\PRIMARY\\OTHER\\NONE").write(tmp_path / "other.dcm")
    replace(half, instance="1.2.3.9", series="1.2.99").write(tmp_path / "stranger.dcm")
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "folder.dcm").mkdir()
    for path in paths:
        info = info_of(path)
        levels = dicom_levels_or_reasons(path, info)
        assert [(level.width, level.height) for level in info.levels] == [(200, 150), (100, 75), (50, 37)]
        assert [level.shape for level in levels if isinstance(level, DicomLevel)] == [(3, 4), (2, 2), (1, 1)]
        for number, level in enumerate(levels):
            assert isinstance(level, DicomLevel)
            assert same_as_openslide(level, path, number)


def test_a_copy_beside_the_file(simple: Dicom, tmp_path: Path) -> None:
    """OpenSlide takes the file that it was given."""
    paths = [simple.write(tmp_path / "a.dcm"), simple.write(tmp_path / "b.dcm")]
    for path in paths:
        assert same_as_openslide(only_level(path), path)
    replace(simple, instance="1.2.3.5", size=(100, 75), frames=simple.frames[:4]).write(tmp_path / "c.dcm")
    levels = dicom_levels_or_reasons(tmp_path / "c.dcm", info_of(tmp_path / "c.dcm"))
    assert "2 files of the series have 200x150 px" in str(levels[0])
    assert isinstance(levels[1], DicomLevel)


def test_one_bad_file_spoils_only_its_level(simple: Dicom, tmp_path: Path) -> None:
    path = simple.write(tmp_path / "a.dcm")
    half = replace(simple, instance="1.2.3.5", size=(100, 75), frames=simple.frames[:4])
    half.write(tmp_path / "b.dcm")
    info = info_of(path)
    (tmp_path / "b.dcm").write_bytes(half.data()[:-3000])
    good, bad = dicom_levels_or_reasons(path, info)
    assert isinstance(good, DicomLevel)
    assert "100x75" in str(bad)
    assert "b.dcm" in str(bad)


def with_sequence(tag: int, depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = sequence(tag, [inner], defined=False)
    return inner


EVEN = [(1 + TILE * (tile % 4), 1 + TILE * (tile // 4)) for tile in range(12)]

DOUBTFUL: dict[str, tuple[dict[str, Any], str]] = {
    "too few frames": ({"number_of_frames": 11, "table": "none"}, "more than 11 items"),
    "half of the frames": ({"size": (200, 300)}, "12 frames without positions for 20 tiles"),
    "two frames in one place": ({"places": [*EVEN[:11], (1, 1)]}, "several frames at one position"),
    "frames without positions": ({"organization": "TILED_SPARSE"}, "without positions"),
    "position outside": ({"places": [*EVEN[:11], (1 + 9 * TILE, 1)]}, "no grid"),
    "positions of some frames": ({"places": EVEN[:11]}, "no grid"),
    "positions off the grid": ({"places": [*EVEN[:11], (2, 1)]}, "no grid"),
    "part of a concatenation": ({"also": {0x00209161: element(0x00209161, "UI", "1.5")}}, "several files"),
    "other organization": ({"organization": "3D"}, "organized as 3D"),
    "frames of another size": ({"tile": 63}, "64x64 px, the tile 63x63"),
    "tables of nonsense": ({"table": "extended", "also": {0x7FE00001: element(0x7FE00001, "OV", bytes(96))}}, "order"),
}
"""What OpenSlide opens, or would, and what is not certain enough."""


@pytest.mark.parametrize("name", DOUBTFUL)
def test_doubtful_files_are_left_to_openslide(name: str, simple: Dicom, tmp_path: Path) -> None:
    changes, words = DOUBTFUL[name]
    good = info_of(simple.write(tmp_path / "good" / "a.dcm"))
    path = replace(simple, **changes).write(tmp_path / "a.dcm")
    size = changes.get("size", simple.size)
    levels = (replace(good.levels[0], width=size[0], height=size[1]),)
    assert words in reason(path, replace(good, width=size[0], height=size[1], levels=levels))


HUGE = element(0x00420011, "OB", b"", 0xF0000000 - 12)

HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "huge value": ({"also": {0x00280004: element(0x00280004, "UN", b"RGB ", 0xFFFFFFF0)}}, "bytes"),
    "huge other value": ({"also": {0x00480008: element(0x00480008, "UN", b"RGB ", 0xFFFFFFF0)}}, "the file ends"),
    "huge table": ({"also": {0x7FE00001: element(0x7FE00001, "OV", b"", 0xFFFFFFF0)}}, "the file ends"),
    "huge basic table": (
        {"also": {0x7FE00010: element(0x7FE00010, "OB", mark(0xFFFEE000, 0xFFFFFFF0), UNDEFINED)}},
        "an offset table of 4294967280 bytes",
    ),
    "huge frame": (
        {"also": {0x7FE00010: element(0x7FE00010, "OB", mark(0xFFFEE000) + mark(0xFFFEE000, 0xFFFFFFF0), UNDEFINED)}},
        "no item of pixels",
    ),
    "billions of frames": ({"number_of_frames": 4_000_000_000}, "4000000000 frames"),
    "no frames": ({"number_of_frames": 0}, "0 frames"),
    "frames of text": ({"also": {0x00280008: element(0x00280008, "IS", "many")}}, "many"),
    "billions of tiles": ({"also": {0x00480006: element(0x00480006, "UL", 0xFFFFFFFF)}}, "could be used"),
    "tiles of nothing": ({"also": {0x00280010: element(0x00280010, "US", 0)}}, "a size of 0 px"),
    "binary without length": ({"also": {0x00480008: element(0x00480008, "UN", b"", UNDEFINED)}}, "has no length"),
    "deep nesting": ({"also": {0x52009230: with_sequence(0x52009230, 3000)}}, "nested"),
    "deep nesting elsewhere": ({"also": {0x00480105: with_sequence(0x00480105, 3000)[:-16]}}, "could be used"),
    "huge item": (
        {"also": {0x52009230: element(0x52009230, "SQ", mark(0xFFFEE000, 0xF0000000) + HUGE, 0xF0000008)}},
        "4026531848 bytes about one frame",
    ),
    "16 bits": ({"also": {0x00280100: element(0x00280100, "US", 16)}}, "00280100 is 16, not 8"),
    "implicit": ({"syntax": "1.2.840.10008.1.2"}, "could be used"),
    "JPEG with 12 bits": ({"syntax": "1.2.840.10008.1.2.4.51"}, "transfer syntax 1.2.840.10008.1.2.4.51"),
    "CMYK": ({"photometric": "CMYK"}, "CMYK"),
    "no pixels": ({"also": {0x7FE00010: b""}}, "the file ends"),
    "native, too short": ({"syntax": NATIVE, "photometric": "RGB"}, "bytes of pixels for 12 frames"),
    "JPEG 2000 that is JPEG": ({"syntax": LOSSY, "photometric": "RGB"}, "not a JPEG 2000 codestream"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_cost_nothing(name: str, simple: Dicom, tmp_path: Path) -> None:
    changes, words = HOSTILE[name]
    info = info_of(simple.write(tmp_path / "good" / "a.dcm"))
    path = replace(simple, **changes).write(tmp_path / "a.dcm")
    reason(path, info)  # imports are not to be counted
    tracemalloc.start()
    try:
        assert words in reason(path, info)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_jpeg2000_of_another_size_takes_no_memory(picture: Pixels, tmp_path: Path) -> None:
    frames = [jpeg2000(lossy=False)(tile) for tile in tiles_of(picture)]
    dicom = Dicom(frames=frames, size=(200, 150), syntax=LOSSLESS, photometric="YBR_RCT")
    level = only_level(dicom.write(tmp_path / "a.dcm"))
    huge = frames[1][:8] + struct.pack(">II", 60_000, 60_000) + frames[1][16:]
    with pytest.raises(SlideReadError, match="60000x60000 px"):
        level.decode(1, huge)
    with pytest.raises(SlideReadError, match="tile 1 "):
        level.decode(1, frames[1][:200])


def equal_or_both_fail(path: Path, info: SlideInfo) -> str:
    """Compare tile by tile; an error is right where OpenSlide has one as well."""
    (level,) = dicom_levels_or_reasons(path, info)
    if isinstance(level, str):
        return "left"
    seen = set()
    for tile in np.flatnonzero(level.present).tolist():
        row, column = divmod(tile, level.shape[1])
        corner, (across, down) = (column * TILE, row * TILE), level.tile_size
        why = ""
        try:
            mine: Pixels | None = level.decode(tile, level.fetch([tile])[0])
        except SlideReadError as error:
            mine, why = None, str(error)
        try:
            with openslide.OpenSlide(path) as slide:
                region = slide.read_region(corner, 0, (min(across, 200 - corner[0]), min(down, 150 - corner[1])))
                theirs: Pixels | None = np.asarray(region)[..., :3]
        except openslide.OpenSlideError:
            theirs = None
        if mine is None:
            # OpenSlide does not look whether a JPEG's pixels end where its bytes do; with damaged ones they do not.
            assert theirs is None or "extraneous bytes" in why
            seen.add("both fail")
        elif theirs is not None:
            assert np.array_equal(mine[: theirs.shape[0], : theirs.shape[1]], theirs), f"tile {tile} differs"
            seen.add("equal")
    return "equal" if "equal" in seen else "both fail"


@pytest.mark.parametrize("table", ["none", "basic", "extended"])
def test_truncated_files(table: str, simple: Dicom, tmp_path: Path) -> None:
    dicom = replace(simple, table=table, places=EVEN)
    path = dicom.write(tmp_path / "a.dcm")
    info, data = info_of(path), dicom.data()
    for end in [*range(0, len(data) - 5, 397), len(data) - 5, len(data) - 9]:
        path.write_bytes(data[:end])
        assert "a.dcm" in reason(path, info) or end < 300
    path.write_bytes(data)
    assert equal_or_both_fail(path, info) == "equal"


def test_damaged_bytes(simple: Dicom, tmp_path: Path) -> None:
    """Bits flipped anywhere: no exception but the one of a tile, and never pixels other than OpenSlide's."""
    dicom = replace(simple, places=EVEN, organization="TILED_SPARSE")
    path = dicom.write(tmp_path / "a.dcm")
    info, data = info_of(path), dicom.data()
    header = data.index(b"\xff\xd8\xff")
    rng = np.random.default_rng(0)
    places = [*rng.integers(128, header, 150).tolist(), *rng.integers(header, len(data), 60).tolist()]
    outcomes = set()
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        outcomes.add(equal_or_both_fail(path, info))
    assert {"left", "equal"} <= outcomes


def test_a_frame_that_is_damaged_or_gone(simple: Dicom, tmp_path: Path) -> None:
    frames = [*simple.frames]
    frames[0] = b"\xff\xd8" + bytes(len(frames[0]) - 2)
    frames[5] = frames[5][:300]
    path = replace(simple, frames=frames).write(tmp_path / "a.dcm")
    level = only_level(path)
    assert level.words.endswith("4:2:0")  # learned from another frame
    for tile in (0, 5):
        with pytest.raises(SlideReadError, match=rf"a\.dcm: tile {tile} \(column {tile % 4}, row {tile // 4}"):
            level.decode(tile, level.fetch([tile])[0])
    level.decode(6, level.fetch([6])[0])
    data = path.read_bytes()
    path.write_bytes(data[: data.index(frames[11]) + 50])
    with pytest.raises(SlideReadError, match=r"tile 11 .*the file ends"):
        level.fetch([10, 11])
    level.decode(10, level.fetch([10])[0])
    path.write_bytes(data.replace(mark(0xFFFEE000, len(frames[7]) + len(frames[7]) % 2), bytes(8)))
    with pytest.raises(SlideReadError, match="no items of pixels"):
        level.fetch([7])
    path.unlink()
    other = only_level(simple.write(tmp_path / "b" / "a.dcm"))
    (tmp_path / "b" / "a.dcm").unlink()
    with pytest.raises(SlideReadError, match="cannot be read"):
        other.fetch([0])


def test_out_must_fit(simple: Dicom, tmp_path: Path) -> None:
    level = only_level(simple.write(tmp_path / "a.dcm"))
    with pytest.raises(UsageError, match="out is"):
        level.decode(0, level.fetch([0])[0], np.empty((TILE, TILE + 1, 3), np.uint8))


@pytest.mark.parametrize("table", ["none", "basic", "extended"])
def test_only_headers_are_read(
    table: str, stained: Callable[..., Pixels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [native(tile) * 40 for tile in tiles_of(stained(256, 256, seed=2))]  # bulky, and no more than that
    path = Dicom(frames=frames, size=(256, 256), table=table).write(tmp_path / "a.dcm")
    info = info_of(path)
    read: list[int] = []
    peek = ElementReader.peek
    monkeypatch.setattr(ElementReader, "peek", lambda self, at, count: (read.append(count), peek(self, at, count))[1])
    assert "not a JPEG" in reason(path, info)
    assert path.stat().st_size > 5_000_000
    assert sum(read) < 2 * 60_000
    assert len(read) < 2 * 30


def test_neighbours_share_a_read(simple: Dicom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    level = only_level(simple.write(tmp_path / "a.dcm"))
    sizes: list[int] = []
    read = level._file.read
    monkeypatch.setattr(level._file, "read", lambda at, size: (sizes.append(size), read(at, size))[1])
    found = level.fetch([3, 1, 2, 11])
    assert len(sizes) == 1
    assert [data.rstrip(b"\0") for data in found] == [simple.frames[tile].rstrip(b"\0") for tile in (3, 1, 2, 11)]
    assert level.fetch([]) == []


def test_many_threads_and_close(simple: Dicom, tmp_path: Path) -> None:
    level = only_level(simple.write(tmp_path / "a.dcm"))
    expected = [level.decode(tile, data) for tile, data in enumerate(level.fetch(range(12)))]
    wrong: list[int] = []

    def work(seed: int) -> None:
        tiles = np.random.default_rng(seed).integers(0, 12, 60).tolist()
        decoded = (level.decode(tile, level.fetch([tile])[0]) for tile in tiles)
        wrong.extend(tile for tile, pixels in zip(tiles, decoded, strict=True) if (pixels != expected[tile]).any())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    level.close()
    level.close()
    with pytest.raises(SlideReadError, match="closed"):
        level.fetch([0])
