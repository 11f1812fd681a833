"""Painted slides that several rooms test on. Painted once a run and read only."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
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


@pytest.fixture
def gpu_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stain transforms of tiles on the CPU go the way of those on a GPU: Triton's interpreter runs the kernels."""
    reason = "the kernels are in Triton, which torch for this system does not bring"
    pytest.importorskip("triton", reason=reason)
    from histotl.image import _device, _host

    monkeypatch.setenv("TRITON_INTERPRET", "1")  # is looked at when the kernels are imported
    monkeypatch.delitem(sys.modules, "histotl.image._kernels", raising=False)
    _device._kernels.cache_clear()
    monkeypatch.setattr(_host, "is_host", lambda tiles: False)
    monkeypatch.setattr(_device, "has_kernels", lambda tiles: True)
    launch, one_at_a_time = _device._launch, threading.Lock()  # the interpreter is for one thread, as a GPU's queue is

    def alone(*args: object) -> object:
        with one_at_a_time:
            return launch(*args)

    monkeypatch.setattr(_device, "_launch", alone)
    yield
    _device._kernels.cache_clear()
