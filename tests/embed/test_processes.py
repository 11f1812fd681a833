"""Several processes, and Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from histotl.embed._interrupt import unbroken
from histotl.embed.config import EmbedConfig
from histotl.embed.engine import embed_slides
from histotl.embed.summary import Failure, RunSummary, read_failures, write_failures
from histotl.store.embeddings import check_file
from histotl.store.lock import SlideLock

FOLDER = "10x_64px_0px_overlap"

SCRIPT = """
import signal, sys, time
from dataclasses import dataclass
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from histotl.backbones.color_stats import ColorStatsEmbedder
from histotl.core.registry import register
from histotl.embed.config import EmbedConfig, TileConfig
from histotl.embed.engine import embed_slides

@register("backbone", "slow")
@dataclass(frozen=True, kw_only=True)
class Slow:
    def load(self, device):
        return SlowEmbedder()

class SlowEmbedder(ColorStatsEmbedder):
    def __call__(self, tiles):
        time.sleep(0.05)
        return super().__call__(tiles)

def tell(step):
    print(step.units_done, flush=True)

config = EmbedConfig(backbone=("slow",), dtype="fp32", device="cpu", batch_size=4, workers=2)
embed_slides(sys.argv[1], sys.argv[2], tiling=TileConfig(tile_px=64, mpp=1.0), config=config, report=tell)
"""


@pytest.mark.parametrize("tiles_before", [1, 40])
def test_ctrl_c_leaves_nothing_half_done(slides, tmp_path, leftovers, tiles_before):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(slides), str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= tiles_before:
            break
    assert leftovers(out), "the run was not in the middle of a slide"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert leftovers(out) == []
    assert all(check_file(path) == [] for path in out.rglob("features_*/*.h5"))


def test_two_processes_do_every_slide_once(slides, tmp_path, tiling, leftovers):
    out = tmp_path / "out"
    config = EmbedConfig(
        backbone=("scattering(input_px=64)", "color_stats"), dtype="fp32", device="cpu", batch_size=8, workers=1
    )
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        runs = [pool.submit(embed_slides, slides, out, tiling=tiling, config=config) for _ in range(2)]
        first, second = (run.result() for run in runs)
    # Each slide was done by one of them; the other found it done, or locked.
    assert first.done + second.done == 3
    assert {run.done + run.skipped + run.busy for run in (first, second)} == {3}
    files = sorted(out.rglob("features_*/*.h5"))
    assert len(files) == 6
    assert all(check_file(file) == [] for file in files)
    assert leftovers(out) == []


def test_a_locked_slide_is_left_alone_and_counted(slides, tmp_path, tiling, config):
    out = tmp_path / "out"
    path = out / FOLDER / "features_color_stats" / "b.h5"
    with SlideLock(path):
        summary = embed_slides(slides, out, tiling=tiling, config=config)
    assert (summary.done, summary.busy, summary.ok) == (2, 1, True)
    assert not path.exists()
    assert embed_slides(slides, out, tiling=tiling, config=config).done == 1


def test_the_lock_of_a_dead_process_is_taken_over(slides, tmp_path, tiling, config):
    out = tmp_path / "out"
    path = out / FOLDER / "features_color_stats" / "b.h5"
    path.parent.mkdir(parents=True)
    code = "import sys, os, pathlib; from histotl.store.lock import SlideLock; "
    code += "SlideLock(pathlib.Path(sys.argv[1])).acquire(); os._exit(1)"
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert list(path.parent.glob("*.lock"))
    assert embed_slides(slides, out, tiling=tiling, config=config).done == 3


def test_a_dead_lock_beside_a_finished_file_is_removed(slides, tmp_path, tiling, config, leftovers):
    out = tmp_path / "out"
    embed_slides(slides, out, tiling=tiling, config=config)
    path = out / FOLDER / "features_color_stats" / "b.h5"
    code = "import sys, os, pathlib; from histotl.store.lock import SlideLock; "
    code += "SlideLock(pathlib.Path(sys.argv[1])).acquire(); os._exit(1)"
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert leftovers(out) == ["b.h5.lock"]
    assert embed_slides(slides, out, tiling=tiling, config=config).skipped == 3
    assert leftovers(out) == []


def test_failures_of_slides_that_others_work_on_are_kept(tmp_path):
    def failure(name: str) -> Failure:
        return Failure(slide_id=name, path=f"{name}.svs", error="MppError", message='a "quoted", message', hint="")

    write_failures(tmp_path, [failure("a"), failure("b")])
    write_failures(tmp_path, [failure("c")], keep=["b"])
    assert read_failures(tmp_path) == [failure("b"), failure("c")]
    write_failures(tmp_path, [])
    assert not (tmp_path / "failures.csv").exists()
    assert RunSummary(done=1, skipped=0, failed=(failure("a"),)).ok is False


def test_an_interrupt_waits_for_the_end_of_an_unbroken_block():
    done: list[str] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the block is the subject
        with unbroken():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            done.append("inside")
        done.append("after")
    assert done == ["inside"]
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_paths_may_be_text(slides, tmp_path, tiling, config):
    assert embed_slides(str(slides / "a.tiff"), str(tmp_path / "out"), tiling=tiling, config=config).done == 1
    assert Path(tmp_path / "out" / FOLDER).is_dir()
