"""Training on more features than the memory that they may take, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from histotl.store.hdf5 import create_file, write_contiguous

FILES, ROWS, DIM = 24, 4096, 1024
CACHE_MB = FILES * ROWS * DIM * 2 / 2**20

TRAINED = """
import json, sys
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from histotl.learn.bags import BagStore, Bags
from histotl.learn.config import TrainConfig
from histotl.learn.fit import Labelled, fit
from histotl.learn.rows import ArrayRows
from histotl.learn.task import Task

def learn(bags):
    labelled = Labelled(bags=bags, targets={"yes": np.arange(len(bags)) % 2.0})
    config = TrainConfig(members=1, learning_rates=(0.001,), min_steps=8, max_steps=8, max_tiles=32, device="cpu")
    task = Task(name="yes", kind="binary", classes=("n", "y"))
    fitted = fit(labelled, labelled, tasks=[task], config=config, aggregator="abmil(hidden=16, attention=8)")
    return float(sum(value.double().abs().sum() for value in fitted.members[0].parameters()))

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))

learn(Bags.singles(ArrayRows(np.eye(4)), np.arange(4)))  # loads code, which takes memory too
before, found = memory("VmRSS:"), []
for memory_gb in map(float, sys.argv[2:]):
    store = BagStore.open(sys.argv[1], memory_gb=memory_gb)
    weights = learn(store.bags([[i] for i in range(len(store.ids))]))
    found.append({"mb": memory("VmHWM:") - before, "where": store.source.residency, "weights": weights})
json.dump(found, sys.stdout)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="NOT TESTED: needs Linux's /proc")
def test_a_cache_four_times_the_budget_is_learnt_from_within_it(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float16)
    for number in range(FILES):
        with create_file(tmp_path / f"S{number:02}.h5", largest=x.nbytes) as file:
            write_contiguous(file, "features", np.roll(x, number, axis=1))
    budget = CACHE_MB / 4 / 2**10
    command = [sys.executable, "-c", TRAINED, str(tmp_path), str(budget), "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # The mark never falls, so the larger run comes last.
    small, large = json.loads(done.stdout)
    assert (small["where"], large["where"]) == ("maps", "memory")
    assert small["weights"] == large["weights"]
    # Beside the features: standardising, a step's activations, and what the allocator keeps of both, some 70 MB.
    assert small["mb"] < CACHE_MB / 4 + 96 < CACHE_MB
    assert large["mb"] > CACHE_MB
