"""What an import costs, and which names are public."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time

import pytest

import histotl

HEAVY = ("torch", "timm", "pandas", "openslide", "h5py", "zarr", "albumentations", "skimage", "sklearn", "matplotlib")


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("code", ["import histotl", "import histotl.cli.main", "import histotl; dir(histotl)"])
def test_nothing_heavy_is_loaded(code: str) -> None:
    assert not loaded_after(code) & set(HEAVY)


def test_training_needs_no_slide_library_and_no_timm() -> None:
    loaded = loaded_after("import histotl.learn.train, histotl.learn.predict, histotl.evaluate.metrics")
    assert not loaded & {"openslide", "timm", "tifffile", "albumentations"}
    assert "torch" in loaded


def test_help_is_quick() -> None:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "histotl.cli.main", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - began)
    # The goal is 0.5 s; a test machine that is busy with other tests gets room.
    assert min(times) < 2.5


def test_public_names() -> None:
    assert list(histotl.__all__) == sorted(histotl.__all__)
    for public, module in histotl._EXPORTS.items():
        assert getattr(histotl, public) is getattr(importlib.import_module(module), public)
    assert dir(histotl) == histotl.__all__
    with pytest.raises(AttributeError, match="no_such_name"):
        histotl.no_such_name  # noqa: B018


def test_import_keeps_global_state() -> None:
    code = (
        "import warnings, logging, signal, locale\n"
        "before = (list(warnings.filters), logging.root.handlers[:], signal.getsignal(2))\n"
        "import histotl.embed.engine, histotl.evaluate.stage\n"
        "assert logging.root.handlers == before[1] and signal.getsignal(2) == before[2]"
    )
    loaded_after(code)
