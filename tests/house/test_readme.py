"""Every code block of the README runs, in order, in a folder with a painted cohort."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from histotl.cli.main import call

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(painted_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(painted_cohort.parent / "slides", folder / "slides")
    shutil.copy(painted_cohort, folder / "slides.csv")
    return folder


def commands(block: str) -> list[list[str]]:
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip() and not line.startswith("#")]


def test_every_block_declares_how_it_is_tested() -> None:
    # text is for shell lines that a test cannot run (make, pip, docker); the others are run below.
    assert {language for language, _ in BLOCKS} == {"text", "bash", "python"}


def test_blocks_run_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for language, block in BLOCKS:
        if language == "bash":
            for argv in commands(block):
                assert argv[0] == "histotl"
                assert call(argv[1:]) == 0, argv
        elif language == "python" and "@register" not in block:
            # The library's own calls follow the command line on the same folder: what is fresh is skipped.
            if "histotl.embed_slides" in block:
                shutil.rmtree(folder / "work")
            exec(compile(block, str(README), "exec"), {})
    page = (folder / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert '<section id="quality">' in page, "the figures that embed measured have found their way to the page"


def test_the_plugin_of_the_readme_keeps_its_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import histotl.image.stain as shelf
    from histotl.core import registry
    from tests.contracts import check_stain, names

    (source,) = (block for language, block in BLOCKS if language == "python" and "@register" in block)
    (tmp_path / "readme_grey.py").write_text(source)
    monkeypatch.setattr(shelf, "__path__", [*shelf.__path__, str(tmp_path)])
    try:
        assert "grey" in names("stain")
        check_stain("grey")
    finally:
        registry._plugins["stain"].pop("grey", None)
        registry._scanned["stain"].discard("readme_grey")
        sys.modules.pop("histotl.image.stain.readme_grey", None)


def test_every_verb_is_in_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    for verb in (
        "demo",
        "info",
        "doctor",
        "list",
        "tile",
        "embed",
        "check",
        "train",
        "predict",
        "evaluate",
        "stain",
        "run",
    ):
        assert re.search(rf"histotl {verb}\b|make {verb}\b", text), verb
