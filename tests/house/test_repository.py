"""The repository as a whole: what it may hold, and that its documents are true."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def test_no_large_or_binary_files() -> None:
    for path in tracked():
        data = path.read_bytes()
        assert len(data) < 400_000, path
        assert b"\0" not in data[:8000] or path.suffix in {".png", ".safetensors"}, path


def test_no_machine_paths() -> None:
    for path in tracked():
        if path.suffix in {".py", ".md", ".toml", ".sh", ""} and path.parent.name != "docker":
            found = re.search(
                r"(?<![\w./])/(home|root|Users|work|mnt)/\w+", path.read_text(encoding="utf-8", errors="ignore")
            )
            assert found is None, (path, found)


def test_version_is_written_once() -> None:
    import histotl

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == histotl.__version__


def test_every_package_file_has_a_test_room() -> None:
    rooms = {p.name for p in (ROOT / "histotl").iterdir() if (p / "__init__.py").is_file()}
    assert rooms <= {p.name for p in (ROOT / "tests").iterdir() if p.is_dir()}
