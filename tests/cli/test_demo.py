"""The demo, small: it ends with a page, the baseline beside the result, and the foreign slides flagged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from histotl.cli.main import call


@pytest.mark.slow
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["demo", str(tmp_path / "demo"), "--patients", "27", "--quiet"]) == 0
    told = capsys.readouterr().out
    assert "painted" in told
    for name in ("scattering", "color_stats"):
        assert re.search(rf"type\s+{name}\s+\d\.\d\d", told), told
    page = Path(re.search(r"pictures: (.+)", told).group(1).strip())  # type: ignore[union-attr]
    assert page.is_file()
    assert "painted" in told.splitlines()[0]
    flagged = sum(int(count) for count in re.findall(r"OOD gate: (\d+) of \d+ ood", told))
    assert flagged >= 1, told
