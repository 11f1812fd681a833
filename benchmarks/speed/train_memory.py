"""A process that trains and tells how much memory it took: ``python -m benchmarks.speed.train_memory FOLDER GB TILES``.

It trains attention on the slides of a folder, labelled in turn, with a budget of so many GiB for features.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.speed.memory import _peak
from histotl.learn.bags import Bags, BagStore
from histotl.learn.config import TrainConfig
from histotl.learn.fit import Labelled, fit
from histotl.learn.rows import ArrayRows
from histotl.learn.task import Task

AGGREGATOR = "abmil(hidden=128, attention=64)"


def main() -> None:
    """Train; print the peak of resident memory above that before, in MB, and where features were."""
    folder, memory_gb, tiles = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    config = TrainConfig(
        members=1, learning_rates=(1e-3,), min_steps=20, max_steps=20, max_tiles=tiles, batch_size=8, device="cpu"
    )
    task = Task(name="type", kind="binary", classes=("no", "yes"))
    # The first training of a process loads code; it is made on next to nothing, before memory is looked at.
    few = Labelled(
        bags=Bags.singles(ArrayRows(np.eye(4)), np.arange(4)), targets={"type": np.array([0.0, 1.0, 0.0, 1.0])}
    )
    fit(few, few, tasks=[task], config=config, aggregator=AGGREGATOR)
    with _peak() as peak:
        store = BagStore.open(folder, memory_gb=memory_gb)
        n = len(store.ids)
        bags = store.bags([[i] for i in range(n)])
        labelled = Labelled(bags=bags, targets={"type": np.arange(n, dtype=np.float64) % 2})
        fitted = fit(labelled, labelled, tasks=[task], config=config, aggregator=AGGREGATOR)
    weights = [float(value.abs().sum()) for value in fitted.members[0].parameters()]
    json.dump({"mb": peak["mb"], "how": peak["how"], "where": store.source.residency, "weights": weights}, sys.stdout)


if __name__ == "__main__":
    main()
