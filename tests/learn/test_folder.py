from __future__ import annotations

import os
from pathlib import Path

import pytest

from histotl.core.errors import UsageError
from histotl.learn.folder import check_folder


def test_files_in_the_way_are_refused_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "model"):
        with pytest.raises(UsageError, match="is a file"):
            check_folder(out)
    check_folder(tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_folders_without_permission_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match="no permission"):
        check_folder(tmp_path / "model")
