"""Which slides a file, a folder, a pattern or a table means."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from histotl.core.errors import SlideOpenError, TableError
from histotl.wsi._dicom import series_of
from histotl.wsi.manifest import load_manifest
from histotl.wsi.slide import open_slide


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def table(folder: Path, text: str, name: str = "m.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def ids(slides: str | Path) -> list[str]:
    return [entry.slide_id for entry in load_manifest(slides)]


def test_one_file(tmp_path: Path) -> None:
    touch(tmp_path, "a b.svs", "c.ome.tiff", "d.e.svs")
    (entry,) = load_manifest(tmp_path / "a b.svs")
    assert (entry.path, entry.slide_id, entry.mpp) == (tmp_path / "a b.svs", "a b", None)
    assert ids(str(tmp_path / "c.ome.tiff")) == ["c"]
    assert ids(tmp_path / "d.e.svs") == ["d.e"]


def test_a_folder_with_everything_that_lies_around(tmp_path: Path) -> None:
    touch(tmp_path, "b.svs", "A.SVS", "sub/deep/c.ndpi", "d.tif", "e.png", "f.JPEG", "g.scn", "h.bif")
    touch(tmp_path, "notes.txt", "labels.csv", "b.geojson", "x.npy", "b.svs.lock", "features.h5", "README")
    touch(tmp_path, ".hidden.svs", ".cache/k.svs", "._b.svs")
    touch(tmp_path, "m.mrxs", "m/Slidedat.ini", "m/Data0000.dat", "m/preview.jpg")
    touch(tmp_path, "v/s.vms", "v/s.jpg", "v/s(1,0).jpg", "v/s_map.jpg", "v/own.jpg")
    (tmp_path / "v/s.vms").write_text(
        "[Virtual Microscope Specimen]\nImageFile=s.jpg\nImageFile(1,0)=s(1,0).jpg\nMapFile=s_map.jpg\n"
    )
    assert ids(tmp_path) == ["A", "b", "c", "d", "e", "f", "g", "h", "m", "own", "s"]
    assert all(entry.path.is_file() for entry in load_manifest(tmp_path))


def dicom(path: Path, series: str, size: int = 100, *, implicit: bool = False, sequence: bool = False) -> None:
    """The head of a DICOM file: meta header, perhaps a sequence of undefined length, the series, some pixels."""

    def short(group: int, number: int, vr: bytes, value: bytes, *, explicit: bool = True) -> bytes:
        value += b"\0" * (len(value) % 2)
        length = vr + struct.pack("<H", len(value)) if explicit else struct.pack("<I", len(value))
        return struct.pack("<HH", group, number) + length + value

    syntax = b"1.2.840.10008.1.2" if implicit else b"1.2.840.10008.1.2.1"
    data = bytes(128) + b"DICM" + short(2, 0x10, b"UI", syntax)
    data += short(8, 0x60, b"CS", b"SM", explicit=not implicit)
    if sequence:  # another series is named inside, two levels deep
        inner = short(0x20, 0xE, b"UI", b"9.9.9")
        item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + inner + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
        undefined = b"SQ\0\0" + struct.pack("<I", 0xFFFFFFFF)
        data += struct.pack("<HH", 8, 0x1115) + undefined + item + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    data += short(0x20, 0xE, b"UI", series.encode(), explicit=not implicit)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data + bytes(size))


def test_dicom_series(tmp_path: Path) -> None:
    for number in range(3):
        dicom(tmp_path / "case1" / f"{number}.dcm", "1.2.3", 100 * (number + 1))
    dicom(tmp_path / "mixed" / "a.dcm", "1.2.4")
    dicom(tmp_path / "mixed" / "b.dcm", "1.2.5", implicit=True)
    dicom(tmp_path / "mixed" / "b2.dcm", "1.2.5", 500, sequence=True)
    touch(tmp_path, "mixed/broken.dcm")
    found = {entry.slide_id: entry.path.name for entry in load_manifest(tmp_path)}
    assert found == {"case1": "2.dcm", "a": "a.dcm", "b2": "b2.dcm", "broken": "broken.dcm"}


def test_dicom_series_of_what_is_none(tmp_path: Path) -> None:
    assert series_of(tmp_path / "none.dcm") == ""
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + b"\x08\x00")
    assert series_of(tmp_path / "a.dcm") == ""
    dicom(tmp_path / "b.dcm", "1.2.3")
    (tmp_path / "b.dcm").write_bytes((tmp_path / "b.dcm").read_bytes()[:160])
    assert series_of(tmp_path / "b.dcm") == ""


def test_patterns(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.svs", "c.txt", "sub/d.svs")
    assert ids(str(tmp_path / "*.svs")) == ["a", "b"]
    assert ids(str(tmp_path / "**" / "*.svs")) == ["a", "b", "d"]
    with pytest.raises(TableError, match="it matches 1 other files"):
        load_manifest(str(tmp_path / "*.txt"))
    with pytest.raises(TableError, match="no such file") as caught:
        load_manifest(tmp_path / "nothing.svs")
    assert "CSV" in caught.value.hint
    (tmp_path / "empty").mkdir()
    with pytest.raises(TableError, match="no slide in this folder"):
        load_manifest(tmp_path / "empty")


@pytest.mark.parametrize(
    "text",
    [
        "path,slide_id,mpp\ns/a.svs,A,0.25\nb.svs,B,\n",
        "wsi,mpp,slide_id\ns/a.svs,0.25,A\nb.svs,nan,B\n",
        "sample_id,image_path,mask_path,spacing_at_level_0\nA,s/a.svs,m.png,0.25\nB,b.svs,,\n",
        "PATIENT,FILENAME,Slide ID,Pixel-Size\n1,s/a.svs,A,0.25\n2,b.svs,B,NA\n",
        "\ufeffcase_id;slide;slide_id;label;mpp\r\n1;s/a.svs;A;x;0.25\r\n2;b.svs;B;y;\r\n",
        "slide\tfilename\tmpp\nA\ts/a.svs\t0.25\n\nB\tb.svs\t\n",
        'path,slide_id,mpp,note\n"s/a.svs",A,0.25,"one, two\nthree"\nb.svs,B,,\n',
    ],
)
def test_tables_with_the_columns_of_other_tools(tmp_path: Path, text: str) -> None:
    entries = load_manifest(table(tmp_path, text))
    assert [(entry.slide_id, entry.path, entry.mpp) for entry in entries] == [
        ("A", tmp_path / "s/a.svs", 0.25),
        ("B", tmp_path / "b.svs", None),
    ]
    assert entries[0].mpp_source == "manifest"


def test_tables_without_names_or_without_paths(tmp_path: Path) -> None:
    assert ids(table(tmp_path, "wsi\nz/b.svs\na.ome.tif\n")) == ["a", "b"]
    assert ids(table(tmp_path, "path,slide_id\nz/b.svs,b.svs\n")) == ["b"], "a name with the suffix"
    touch(tmp_path, "deep/case-7.ndpi")
    (entry,) = load_manifest(table(tmp_path, "case_id,slide_id,label\n7,case-7,x\n"))
    assert entry.path == tmp_path / "deep/case-7.ndpi"
    with pytest.raises(TableError, match="line 2: no slide called 'case-8'"):
        load_manifest(table(tmp_path, "slide_id\ncase-8\n"))


def test_absolute_paths_and_missing_files_are_kept(tmp_path: Path) -> None:
    (entry,) = load_manifest(table(tmp_path, "path\n/not/there.svs\n"))
    assert entry.path == Path("/not/there.svs")
    with pytest.raises(SlideOpenError, match="no such file"):
        open_slide(entry.path)


def test_the_override_wins_over_all(tmp_path: Path) -> None:
    entries = load_manifest(table(tmp_path, "path,mpp\na.svs,0.25\nb.svs,\n"), mpp_override=0.5)
    assert [(entry.mpp, entry.mpp_source) for entry in entries] == [(0.5, "--mpp-override")] * 2


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("patient,label\n1,x\n", "no column of slides among: patient, label"),
        ("path,mpp\na.svs,fine\n", "line 2: mpp is 'fine'"),
        ("path,mpp\na.svs,-1\n", "line 2: mpp is '-1'"),
        ("path\n", "no rows"),
        ("", "the table is empty"),
        ('path,note\na.svs,"open\nb.svs,x\n', "unexpected end of data"),
        ("path,slide_id\n,x\n", "line 2: the column path is empty"),
        ("path,slide_id\na.svs,x\nb/c.svs,x\n", "two slides are called 'x': "),
        ("path\na/s.svs\nb/s.svs\n", "two slides are called 's': "),
        ("path,slide_id\na.svs,../x\n", "cannot name a file"),
        ("wsi,filename\na.svs,b.svs\n", "columns wsi and filename mean the same"),
        ("path,path\na.svs,b.svs\n", "column path is there twice"),
        ("path\na,b.svs\n", "line 2: 2 cells for 1 columns"),
    ],
)
def test_wrong_tables_are_answered_with_the_cure(tmp_path: Path, text: str, fact: str) -> None:
    with pytest.raises(TableError) as caught:
        load_manifest(table(tmp_path, text))
    assert fact in caught.value.message
    assert "m.csv" in caught.value.message or "two slides" in fact
    assert caught.value.hint


def test_twins_are_told_with_both_paths(tmp_path: Path) -> None:
    touch(tmp_path, "a/s.svs", "b/s.ndpi")
    with pytest.raises(TableError) as caught:
        load_manifest(tmp_path)
    assert str(tmp_path / "a/s.svs") in caught.value.message
    assert str(tmp_path / "b/s.ndpi") in caught.value.message


def test_a_table_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes("path\nmüller.svs\n".encode("latin-1"))
    with pytest.raises(TableError, match="not UTF-8"):
        load_manifest(tmp_path / "m.csv")


def test_tables_of_spreadsheets(tmp_path: Path) -> None:
    (entry,) = load_manifest(table(tmp_path, "FILENAME;Spacing\na.svs;0,25\n"))
    assert entry.mpp == 0.25
    for name in ("slides.xlsx", "slides.txt"):
        with pytest.raises(TableError, match="must be a CSV"):
            load_manifest(table(tmp_path, "path\na.svs\n", name))
    with pytest.raises(TableError, match="empty"):
        load_manifest("")


def test_home_is_understood_in_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (entry,) = load_manifest(table(tmp_path, "path\n~/a.svs\n"))
    assert entry.path == tmp_path / "a.svs"


def test_pictures_of_an_earlier_run_are_no_slides(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "out/contours_geojson/a.geojson", "out/contours/a.jpg", "out/thumbnails/a.jpg")
    touch(tmp_path, "contours/b.jpg")
    assert ids(tmp_path) == ["a", "b"], "only beside contours_geojson"
