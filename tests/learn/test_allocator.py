"""Steps of training whose matrices exceed what glibc keeps by itself use the memory of the step before."""

from __future__ import annotations

import resource

import numpy as np
import pytest

from histotl.core.allocator import _glibc
from histotl.learn._trainer import Hooks
from histotl.learn.bags import Bags
from histotl.learn.batch import Batch
from histotl.learn.config import TrainConfig
from histotl.learn.fit import Labelled, fit
from histotl.learn.rows import ArrayRows
from histotl.learn.task import Task


@pytest.mark.skipif(_glibc() is None, reason="no glibc")
def test_a_step_finds_the_memory_of_the_step_before() -> None:
    tiles, width = 6000, 2048  # float32: 47 MiB embedded, above everything that glibc keeps by itself
    x = np.random.default_rng(0).standard_normal((tiles, 4), dtype=np.float32)
    bags = Bags.of(ArrayRows(x), np.array_split(np.arange(tiles), 4))
    labelled = Labelled(bags=bags, targets={"type": np.array([0.0, 1.0, 0.0, 1.0])})
    few = Labelled(bags=bags.thinned(4, seed=0), targets=labelled.targets)
    seen = []

    def watch(batch: Batch) -> None:
        seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

    config = TrainConfig(
        members=1, learning_rates=(1e-3,), min_steps=14, max_steps=14, max_tiles=tiles, batch_size=4, device="cpu"
    )
    task = Task(name="type", kind="binary", classes=("no", "yes"))
    fit(
        labelled,
        few,
        tasks=[task],
        config=config,
        aggregator=f"abmil(hidden={width}, attention=4)",
        hooks=Hooks(watch=watch),
    )
    pages = 4 * tiles * width // resource.getpagesize()
    assert np.median(np.diff(seen)[6:]) < pages / 10
