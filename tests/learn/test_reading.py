"""Tables as they come: other delimiters, other names, and what must not be read as something else."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from histotl.core.errors import TableError
from histotl.learn.reading import column, nearest, read_table, with_ids


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_delimiters_byte_order_marks_and_empty_rows(tmp_path: Path, delimiter: str, encoding: str) -> None:
    text = 'slide_id,label\n001,"Größe"\n,\n\n002,NA\n'.replace(",", delimiter)
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    frame = read_table(tmp_path / "t.csv")
    assert list(frame.columns) == ["slide_id", "label"]
    assert frame.to_numpy().tolist() == [["001", "Größe"], ["002", "NA"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"slide_id,label,label\n1,a,b\n", "'label' is there twice"),
        (b"slide_id,label, label\n1,a,b\n", "'label' is there twice"),
        (b"slide_id,label\n1,a,b\n2,a,b\n", "Expected 2 fields"),
        (b"slide_id,label\n1,J\xe4\n", "not UTF-8"),
        ("slide_id,label\n1,a\n".encode("utf-16"), "not UTF-8"),
        (b"slide_id,label\n,\n", "no rows"),
    ],
)
def test_doubtful_tables_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(TableError, match=message) as caught:
        read_table(tmp_path / "t.csv")
    assert caught.value.hint


def test_a_named_index_is_a_column_and_the_callers_table_stays(tmp_path: Path) -> None:
    given = pd.DataFrame({"slide_id": ["a", "b"], " label ": ["x", "y"]})
    frame = read_table(given.set_index("slide_id"))
    assert column(frame, "slide_id", flag="--id-column") == ["a", "b"]
    assert list(given.columns) == ["slide_id", " label "]
    with pytest.raises(TableError, match="cannot be read: Is a directory"):
        read_table(tmp_path)


@pytest.mark.parametrize(
    ("columns", "ids"),
    [
        ({"slide_id": ["x"], "path": ["a.svs"]}, ["x"]),
        ({"Slide ID": ["x"], "wsi": ["a.svs"]}, ["x"]),
        ({"sample_id": ["x"]}, ["x"]),
        ({"wsi": ["scans/a.b.svs", "c.ome.tif", "d\\e.ndpi", None]}, ["a.b", "c", "e", None]),
    ],
)
def test_slides_have_the_names_that_embed_gives_them(columns: dict[str, list[str | None]], ids: list[str]) -> None:
    frame = with_ids(pd.DataFrame(columns), "slide_id")
    assert column(frame, "slide_id", flag="--id-column") == ids


def test_other_columns_are_not_made_up() -> None:
    frame = pd.DataFrame({"wsi": ["a.svs"]})
    assert list(with_ids(frame, "path").columns) == ["wsi"]
    assert list(with_ids(pd.DataFrame({"x": [1]}), "slide_id").columns) == ["x"]
    assert nearest(pd.DataFrame(columns=["Case-ID", "x"]), "patient", ("case_id",)) == "Case-ID"
