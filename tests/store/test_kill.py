"""Writers that die at any moment, and writers that meet."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from histotl.store.embeddings import EmbeddingsMeta, EmbeddingsWriter, check_file, open_embeddings

_KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
import numpy as np
from histotl.core.provenance import Provenance
from histotl.core.values import BackboneCard, FeatureIdentity
from histotl.store.embeddings import EmbeddingsMeta, EmbeddingsWriter, check_file
from histotl.store.layout import remove_stale_parts
from histotl.store.lock import SlideLock

folder, turns = Path(sys.argv[1]), int(sys.argv[2])
card = BackboneCard(name="x", dim=64, pooling="avg", input_px=1, mean=(0, 0, 0), std=(1, 1, 1))
identity = FeatureIdentity.of(card, None, stain="none", compute="fp32", dtype="fp16")
provenance = Provenance.now()

def write(name, n):
    meta = EmbeddingsMeta(identity=identity, card=card, provenance=provenance, items=tuple(map(str, range(n))))
    with SlideLock(folder / name), EmbeddingsWriter(folder / name, n=n, dim=64, dtype="fp16", meta=meta) as writer:
        for rows in np.array_split(np.arange(n), 5):
            writer.put(rows, np.full((len(rows), 64), 0.5, np.float32))
        writer.seal()

def run():
    for turn in range(10**6):
        write(f"{turn % 3}.h5", 1 + turn * 97 % 2000)

random.seed(0)
answers = []
for turn in range(turns):
    child = os.fork()
    if child == 0:
        run()
    time.sleep(random.uniform(0.005, 0.15))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    left = len(list(folder.glob(".*.part")))
    bad = {path.name: check_file(path) for path in folder.glob("*.h5") if check_file(path)}
    removed = remove_stale_parts(folder)
    answers.append({"left": left, "removed": len(removed), "bad": bad, "files": len(list(folder.glob("*.h5")))})
for name in ("0.h5", "1.h5", "2.h5"):
    write(name, 10)  # no lock of the dead is in the way
print(json.dumps({"answers": answers, "end": sorted(path.name for path in folder.iterdir())}))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_writers_leave_whole_files_or_none(tmp_path: Path) -> None:
    turns = 25
    done = subprocess.run(
        [sys.executable, "-c", _KILLER, tmp_path, str(turns)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    result = json.loads(done.stdout)
    answers = result["answers"]
    assert [answer["bad"] for answer in answers] == [{}] * turns
    assert sum(answer["files"] for answer in answers) > turns
    assert sum(answer["left"] for answer in answers) > 0, "no kill fell into a write; the test shows nothing"
    assert [answer["removed"] for answer in answers] == [answer["left"] for answer in answers]
    assert result["end"] == ["0.h5", "1.h5", "2.h5"]


def _write_together(path: str, value: float, meta: EmbeddingsMeta, gate: object) -> None:
    for _ in range(5):
        gate.wait()
        with EmbeddingsWriter(Path(path), n=300, dim=50, dtype="fp16", meta=meta) as writer:
            writer.put(np.arange(300), np.full((300, 50), value, np.float32))
            writer.seal()


def test_two_writers_without_a_lock_still_leave_one_whole_file(
    tmp_path: Path, make_meta: Callable[..., EmbeddingsMeta]
) -> None:
    context = multiprocessing.get_context("spawn")
    path, gate = tmp_path / "s.h5", context.Barrier(2)
    processes = [
        context.Process(target=_write_together, args=(str(path), value, make_meta(300, 50), gate))
        for value in (1.0, 2.0)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.h5"]
    assert check_file(path) == []
    assert len(np.unique(open_embeddings(path).read())) == 1
