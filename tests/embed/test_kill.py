"""A run that is killed at any moment leaves whole files or none, and running it again finishes the job.

``HISTOTL_KILLS`` sets the number of kills; the default keeps the suite short.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from histotl.embed.config import EmbedConfig, TileConfig
from histotl.embed.engine import embed_slides
from histotl.store.embeddings import check_file, open_embeddings

KILLS = int(os.environ.get("HISTOTL_KILLS", "5"))
TILING = TileConfig(tile_px=64, mpp=1.0)
CONFIG = EmbedConfig(
    backbone=("scattering(input_px=64)", "color_stats"), dtype="fp32", device="cpu", batch_size=8, workers=2
)


@pytest.fixture(scope="module")
def processes():
    """Processes that begin with everything imported: the time to kill in is the run itself, not the import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["histotl.embed.engine", "histotl.backbones.scattering"])
    return context


def features(out: Path) -> dict[str, np.ndarray]:
    files = (p for p in out.rglob("features_*/*.h5") if not p.name.startswith("."))
    return {str(p.relative_to(out)): open_embeddings(p).read() for p in files}


def start(processes, slides: Path, out: Path):
    process = processes.Process(target=embed_slides, args=(slides, out), kwargs={"tiling": TILING, "config": CONFIG})
    process.start()
    return process


@pytest.mark.slow
def test_killed_at_random_moments(processes, slides, tmp_path, leftovers):
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    for name in "abc":
        shutil.copy(slides / f"{name}.tiff", slides / f"{name}_again.tiff")
    start(processes, slides, tmp_path / "warm-up").join()
    began = time.monotonic()
    start(processes, slides, undisturbed).join()
    length = time.monotonic() - began
    wanted = features(undisturbed)
    assert len(wanted) == 12

    moments, killed, partly = random.Random(5), 0, 0
    for number in range(KILLS):
        if len(features(out)) == len(wanted):
            shutil.rmtree(out)  # done in spite of all kills: begin again
        process = start(processes, slides, out)
        time.sleep(moments.uniform(0.2, 1.0) * length)
        process.kill()
        process.join()
        killed += process.exitcode == -9
        found = features(out)
        partly += 0 < len(found) < len(wanted)
        for name in found:
            assert check_file(out / name) == [], f"kill {number}: {name}"
    assert killed, "no run lasted long enough to be killed"

    process = start(processes, slides, out)
    process.join()
    assert process.exitcode == 0
    final = features(out)
    assert final.keys() == wanted.keys()
    for name, rows in wanted.items():
        np.testing.assert_array_equal(final[name], rows)
    assert leftovers(out) == []
    print(f"{killed} of {KILLS} runs killed in {length:.2f} s each, {partly} with some files done")
