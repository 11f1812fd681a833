"""Real slides and patches for the tests in this folder; they skip, saying so, when the data is not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data: ``HISTOTL_REAL_DATA``, or ``../shared/data`` beside the checkout."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("HISTOTL_REAL_DATA", beside))
    if not (folder / "README.md").is_file():
        pytest.skip(f"REAL DATA MISSING: no {folder}; set HISTOTL_REAL_DATA to run the tests on real tissue")
    return folder
