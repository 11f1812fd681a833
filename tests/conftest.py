"""Painted slides that several rooms test on. Painted once a run and read only."""

from __future__ import annotations

import os
from pathlib import Path

# As the command line does, and before torch is loaded: spinning OpenMP threads slow the reader threads beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import pytest


@pytest.fixture(scope="session")
def painted_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table of twelve patients' painted slides, with all splits and one foreign slide."""
    from histotl.paint.cohort import PaintConfig, paint_cohort

    config = PaintConfig(patients=12, mpp=0.5, second_slides=1, foreign=("muscle",), size_um=(700.0, 600.0))
    return paint_cohort(tmp_path_factory.mktemp("painted"), config)


@pytest.fixture(scope="session")
def painted_slide(painted_cohort: Path) -> Path:
    """One painted slide."""
    return sorted((painted_cohort.parent / "slides").glob("*.tif*"))[0]
