"""Sets of bags whose truth is known, and how an aggregator does on them; prints who passes.

    python -m tests.learn.aggregators.truth [SPEC]...

The sets of Raff and Holt ("Reproducibility in multiple instance learning: a case for algorithmic unit tests", NeurIPS
2023) are built after the paper's description. In each, something beside the concept gives training labels away, and
tells the opposite in test:

- ``single``: a bag is positive if it holds a tile of the concept. Training's negative bags, and test's positive ones,
  hold a poison tile. A model that takes the poison for a sign of negative bags has a test AUC below 0.5.
- ``multi``: a bag is positive if it holds tiles of both concepts; one of them alone is negative. The same poison.
- ``frequency``: a bag is positive if it holds tiles of both concepts. Negative bags hold one tile of the first concept
  in training, and some forty in test. A model that adds up what tiles have of a concept takes many of one for both.

A model passes when it has learnt the training set (AUC 0.9 or more) and keeps that in test.
"""

from __future__ import annotations

import sys
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_auc_score

from histotl.learn.bags import Bags
from histotl.learn.config import TrainConfig
from histotl.learn.fit import Labelled, fit
from histotl.learn.network import Network, evaluating
from histotl.learn.rows import ArrayRows
from histotl.learn.task import Task

Set = Literal["single", "multi", "frequency"]
SETS: tuple[Set, ...] = ("single", "multi", "frequency")
TASK = Task(name="positive", kind="binary", classes=("no", "yes"))
PASSED = 0.9
DIM = 16

WIDTHS = "hidden=32, dropout=0.0"
SHOWN = (
    "mean",
    "max",
    "topk",
    "lse",
    "quantile",
    f"instance({WIDTHS}, pool='mean')",
    f"instance({WIDTHS}, pool='topk')",
    f"instance({WIDTHS}, pool='lse')",
    f"instance({WIDTHS})",
    f"instance({WIDTHS}, monotone=True)",
    f"instance({WIDTHS}, monotone=True, pool='lse')",
    f"abmil({WIDTHS}, attention=16)",
    f"abmil({WIDTHS}, attention=16, rows=4)",
    f"additive({WIDTHS}, attention=16, inner=16)",
    f"clam({WIDTHS}, attention=16)",
    f"clam({WIDTHS}, attention=16, branches='multi')",
    f"dsmil({WIDTHS}, query=16)",
    f"dtfd({WIDTHS}, attention=16)",
    f"acmil({WIDTHS}, attention=16)",
    f"transformer({WIDTHS}, heads=4, position='none')",
    f"transmil({WIDTHS}, heads=4, position='none')",
    f"task_tokens({WIDTHS}, heads=4)",
    f"graph({WIDTHS}, attention=16)",
    f"hierarchical({WIDTHS}, attention=16, region=2)",
)
"""Places are random here, so self-attention does without."""


def raff_holt(name: Set, bags: int, *, test: bool, seed: int) -> Labelled:
    """One of the three sets, half of the bags positive."""
    rng = np.random.default_rng([seed, test, SETS.index(name)])
    found, labels = [], np.arange(bags) % 2

    def tiles(centre: float, spread: float, n: int) -> npt.NDArray[np.float64]:
        return centre + spread * rng.standard_normal((n, DIM))

    for positive in labels.astype(bool):
        background = tiles(0, 1, 10 if name == "single" else int(rng.integers(1, 10)))
        if name == "single":
            kinds = rng.random(int(rng.integers(1, 4))) < 0.5
            concept = [tiles(0, 3, int((~kinds).sum())), tiles(1, 1, int(kinds.sum()))] if positive else []
        elif name == "multi":
            n = int(rng.integers(1, 4))
            concept = [tiles(2, 0.1, n), tiles(3, 0.1, n)] if positive else [tiles(2.0 + rng.integers(2), 0.1, 1)]
        elif positive:
            concept = [tiles(2, 0.1, 1), tiles(3, 0.1, 1)]
        else:
            concept = [tiles(2, 0.1, int(rng.integers(35, 45)) if test else 1)]
        poison = [tiles(-10, 0.1, 1)] if name != "frequency" and positive == test else []
        found.append(np.concatenate([background, *concept, *poison]))
    return gathered(found, labels)


def gathered(bags: list[npt.NDArray[np.floating]], labels: npt.NDArray[np.integer]) -> Labelled:
    """Bags and their labels in the form that training takes; tiles lie at random places of a lattice."""
    rng = np.random.default_rng(len(bags))
    cells = [rng.permutation(side * side)[: len(bag)] for bag in bags for side in [int(len(bag) ** 0.5) + 2]]
    sides = np.concatenate([np.full(len(bag), int(len(bag) ** 0.5) + 2) for bag in bags])
    place = np.concatenate(cells)
    source = ArrayRows(np.concatenate(bags).astype(np.float32), 256 * np.stack([place % sides, place // sides], axis=1))
    groups = np.split(np.arange(source.n), np.cumsum([len(bag) for bag in bags])[:-1])
    return Labelled(bags=Bags.of(source, groups), targets={TASK.name: labels.astype(np.float64)})


def trained(
    spec: str, train: Labelled, val: Labelled, *, steps: int = 300, rate: float = 0.01, batch: int = 32
) -> Network:
    """One member, trained as `histotl train` does it."""
    config = TrainConfig(
        members=1,
        min_steps=steps,
        max_steps=steps,
        learning_rates=(rate,),
        batch_size=batch,
        max_tiles=1_000_000,
        hidden=0,
        dropout=0.0,
        ema=0.9,
        device="cpu",
    )
    return fit(train, val, tasks=[TASK], config=config, aggregator=spec).members[0]


def auc(network: Network, bags: Labelled) -> float:
    """Area under the ROC curve of the answers."""
    with evaluating(network):
        packed = bags.bags.gather(np.arange(len(bags.bags)))
        answers = network(packed.x, packed.offsets, packed.coords).tasks[TASK.name][:, 0]
    return float(roc_auc_score(bags.targets[TASK.name], answers.numpy()))


def verdict(spec: str, name: Set, *, seed: int = 0, bags: int = 512, steps: int = 800) -> tuple[float, float]:
    """AUC on training and on test bags."""
    train, val = (raff_holt(name, bags, test=False, seed=seed + part) for part in (0, 1000))
    network = trained(spec, train, val, steps=steps)
    return auc(network, train), auc(network, raff_holt(name, bags, test=True, seed=seed))


def said(learnt: float, kept: float) -> str:
    """The verdict in a word."""
    if learnt < PASSED:
        return "not learnt"
    return "pass" if kept >= PASSED else "fail" if kept < 0.5 else "weaker"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| aggregator | " + " | ".join(f"`{name}`" for name in SETS) + " |")
    print("|---" * (len(SETS) + 1) + "|")
    for spec in sys.argv[1:] or SHOWN:
        cells = [verdict(spec, name) for name in SETS]
        shown = (f"{learnt:.2f} {kept:.2f} {said(learnt, kept)}" for learnt, kept in cells)
        print(f"| `{spec}` | " + " | ".join(shown) + " |", flush=True)


if __name__ == "__main__":
    main()
