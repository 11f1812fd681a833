"""The training engine: reading a step, packing, folds and seeds at once, memory. Random features throughout."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.speed import peers
from benchmarks.speed.harness import Case, Figure, Measured, NotMeasured, Sides, case
from benchmarks.speed.inputs import Inputs
from benchmarks.speed.workers import ROOT, python
from histotl.learn.bags import Bags, BagStore
from histotl.learn.config import TrainConfig
from histotl.learn.fit import Fitted, Labelled, fit
from histotl.learn.rows import ArrayRows
from histotl.learn.sweep import Entry, Swept, sweep
from histotl.learn.task import Task
from histotl.store.hdf5 import create_file, write_contiguous

BATCH, MOST = 16, 512
TASK = Task(name="type", kind="multiclass", classes=("a", "b", "c"))


def _is_tiny(inputs: Inputs) -> bool:
    return inputs.scale.rows < 1000


def _sizes(bags: int, middle: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Tiles of slides: log-normal, as in cohorts of biopsies and resections."""
    return np.maximum(1, rng.lognormal(np.log(middle), 0.8, bags)).astype(np.int64)


def _labelled(sizes: npt.NDArray[np.int64], dim: int, rng: np.random.Generator) -> Labelled:
    x = rng.standard_normal((int(sizes.sum()), dim), dtype=np.float32)
    bags = Bags.of(ArrayRows(x), np.split(np.arange(len(x)), np.cumsum(sizes)[:-1]))
    return Labelled(bags=bags, targets={"type": np.arange(len(sizes)) % 3.0})


def _slides(folder: Path, count: int, rows: int, dim: int) -> Path:
    """Features of so many slides, one file each with one block of numbers; made once."""
    if not folder.is_dir():
        folder.mkdir()
        rng = np.random.default_rng(7)
        x = rng.standard_normal((rows, dim), dtype=np.float32).astype(np.float16)
        for number in range(count):
            with create_file(folder / f"S{number:03}.h5", largest=x.nbytes) as file:
                write_contiguous(file, "features", np.roll(x, number, axis=1))
                write_contiguous(file, "coords", np.zeros((rows, 2), np.int64))
    return folder


@case("train/gather")
def gather(inputs: Inputs) -> Case:
    """Drawing and reading the tiles of a step from files in memory, against copying as many rows that need nothing."""
    count, rows = (4, 12) if _is_tiny(inputs) else (40, 1000)
    store = BagStore.open(_slides(inputs.folder / "train-gather", count, rows, inputs.scale.dim), memory_gb=1.0)
    bags, rng = store.bags([[i] for i in range(count)]), np.random.default_rng(0)
    plain = bags.source.read(np.arange(store.source.n))
    chosen = np.arange(min(BATCH, count))
    taken = np.sort(rng.permutation(len(plain))[: int(np.minimum(bags.sizes[chosen], MOST).sum())])

    def ours() -> tuple[int, ...]:
        return tuple(bags.gather(chosen, max_tiles=MOST, rng=rng).x.shape)

    return Case(
        name=f"a step of {len(chosen)} bags, {MOST} of {rows} fp16 tiles × {inputs.scale.dim} each, drawn and read",
        against="np.take of as many float32 rows (floor)",
        ours=ours,
        reference=lambda: np.take(plain, taken, axis=0).shape,
        same=lambda a, b: a == b,
        units=len(taken),
        unit="tiles",
    )


@case("train/gather-mapped")
def gather_mapped(inputs: Inputs) -> Case:
    """The same from memory maps of the files, as when features exceed the memory, against features in memory."""
    count, rows = (4, 12) if _is_tiny(inputs) else (40, 1000)
    folder = _slides(inputs.folder / "train-gather", count, rows, inputs.scale.dim)
    size = count * rows * inputs.scale.dim * 2 / 2**30
    mapped, resident = (BagStore.open(folder, memory_gb=gb).bags([[i] for i in range(count)]) for gb in (size / 4, 1.0))
    chosen = np.arange(min(BATCH, count))

    def step(bags: Bags) -> torch.Tensor:
        return bags.gather(chosen, max_tiles=MOST, rng=np.random.default_rng(1)).x

    return Case(
        name=f"the same step from memory maps, cache of 4 × the budget, {count} files",
        against="from memory",
        ours=lambda: step(mapped),
        reference=lambda: step(resident),
        same=torch.equal,
    )


def _entries(bags: int, folds: int, seeds: int) -> list[Entry]:
    part = np.random.default_rng(9).permutation(np.arange(bags) % folds)
    return [
        Entry(
            train=np.flatnonzero((part != fold) & (part != (fold + 1) % folds)),
            val=np.flatnonzero(part == fold),
            seed=s,
        )
        for s in range(seeds)
        for fold in range(folds)
    ]


def _one_by_one(labelled: Labelled, entries: list[Entry], config: TrainConfig, aggregator: str) -> list[Fitted]:
    def part(bags: npt.NDArray[np.int64]) -> Labelled:
        return Labelled(bags=labelled.bags.subset(bags), targets={"type": labelled.targets["type"][bags]})

    return [fit(part(e.train), part(e.val), tasks=[TASK], config=config, aggregator=aggregator) for e in entries]


def _sweep_case(inputs: Inputs, aggregator: str, tiles: int, steps: int, device: str, spec: str) -> Case:
    bags, folds, seeds = (9, 3, 2) if _is_tiny(inputs) else (200, 5, 5)
    rng = np.random.default_rng(10)
    labelled = _labelled(_sizes(bags, 6 if _is_tiny(inputs) else 800, rng), inputs.scale.dim, rng)
    entries = _entries(bags, folds, seeds)
    config = TrainConfig(
        members=1, learning_rates=(1e-3,), min_steps=steps, max_steps=steps, max_tiles=tiles, device=device
    )

    def together() -> list[Swept]:
        return sweep(labelled, entries, tasks=[TASK], config=config, aggregator=spec)

    def same(found: list[Any], wanted: list[Any]) -> bool:
        return len(found) == len(wanted) == folds * seeds

    mean = int(labelled.bags.sizes.mean())
    return Case(
        name=f"{len(entries)} {aggregator} models ({folds} folds × {seeds} seeds) at once, {bags} bags of {mean} tiles "
        f"on average × {inputs.scale.dim}, ≤ {tiles} a step, {steps} steps, {device}",
        against=f"{len(entries)} separate runs",
        ours=together,
        reference=lambda: _one_by_one(labelled, entries, config, spec),
        same=same,
        most_rounds=2,
        units=len(entries),
        unit="models",
        threads=None,
    )


@case("train/sweep-mean")
def sweep_mean(inputs: Inputs) -> Case:
    """Folds and seeds of mean pooling at once, against as many runs of ``fit``."""
    return _sweep_case(inputs, "mean", MOST, 4 if _is_tiny(inputs) else 300, "cpu", "mean")


@case("train/sweep-abmil")
def sweep_abmil(inputs: Inputs) -> Case:
    """The same with attention: on a GPU where there is one; on a CPU few tiles and steps of it."""
    if torch.cuda.is_available():
        return _sweep_case(inputs, "abmil", MOST, 300, "cuda", "abmil")
    spec = "abmil(hidden=8, attention=4)" if _is_tiny(inputs) else "abmil"
    return _sweep_case(inputs, "abmil", 32, 4, "cpu", spec)


def _against(inputs: Inputs, name: str, batch: int, *, specimens: bool = False) -> Case:
    """Five epochs of gated attention of CLAM's size, read from files; ours looks at val twenty times.

    Args:
        inputs: How large.
        name: Of the tool.
        batch: Its bags in one step.
        specimens: Bags are of a few patches instead of hundreds of tiles.
    """
    peer = peers.start(inputs, name, "training")
    bags, n_val, middle, epochs = (144, 16, 5, 5) if specimens else (36, 4, 500, 5)
    if _is_tiny(inputs):
        bags, n_val, middle, epochs = 8, 2, 6, 1
    rng = np.random.default_rng(11)
    kind = "specimens" if specimens else "slides"
    folder = inputs.folder / f"train-peers-{kind}"
    if not folder.is_dir():
        folder.mkdir()
        for number, rows in enumerate(_sizes(bags, middle, rng)):
            with create_file(folder / f"S{number:03}.h5", largest=int(rows) * 2048) as file:
                write_contiguous(
                    file, "features", rng.standard_normal((rows, 1024), dtype=np.float32).astype(np.float16)
                )
                write_contiguous(file, "coords", np.zeros((rows, 2), np.int64))
    config = TrainConfig(
        members=1, learning_rates=(1e-4,), hidden=0, dropout=0.0, epochs=epochs, min_steps=0, max_tiles=10**6
    )
    task = Task(name="type", kind="binary", classes=("a", "b"))
    labels = np.arange(bags) % 2.0

    def ours() -> int:
        store = BagStore.open(folder)
        train, val = (
            Labelled(bags=store.bags([[i] for i in part]), targets={"type": labels[part]})
            for part in (np.arange(bags - n_val), np.arange(bags - n_val, bags))
        )
        done = fit(train, val, tasks=[task], config=config, aggregator="abmil(hidden=512, attention=256)")
        return done.steps * min(BATCH, bags - n_val)

    sizes = BagStore.open(folder).bags([[i] for i in range(bags)]).sizes
    how = f"batches of {batch}, padded" if batch > 1 else "one bag a step"
    return Case(
        name=f"train gated attention 1024 → 512 → 256, {epochs} epochs of {bags - n_val} bags of {sizes.min()}–"
        f"{sizes.max()} tiles, packed by {BATCH}, from files",
        against=f"{name}'s own loops, {how}",
        goal=0.2,
        ours=ours,
        reference=lambda: peer.train(folder, inputs.folder / f"{name}-{kind}", n_val=n_val, epochs=epochs, batch=batch),
        same=lambda mine, theirs: mine == theirs,
        threads=None,
        most_rounds=3,
        close=peer.worker.close,
    )


@case("train/clam")
def clam(inputs: Inputs) -> Case:
    """Against CLAM's training, which reads each bag anew in every epoch."""
    return _against(inputs, "CLAM", 1)


@case("train/clam-specimens")
def clam_specimens(inputs: Inputs) -> Case:
    """The same on specimens of a few patches."""
    return _against(inputs, "CLAM", 1, specimens=True)


@case("train/torchmil-specimens")
def torchmil_specimens(inputs: Inputs) -> Case:
    """Likewise, against torchmil's."""
    return _against(inputs, "torchmil", 1, specimens=True)


@case("train/torchmil")
def torchmil(inputs: Inputs) -> Case:
    """Against torchmil's, one bag a step as in its examples."""
    return _against(inputs, "torchmil", 1)


@case("train/torchmil-padded")
def torchmil_padded(inputs: Inputs) -> Case:
    """Against torchmil's with as many bags a step as ours."""
    return _against(inputs, "torchmil", BATCH)


@case("memory/train")
def memory(inputs: Inputs) -> Case:
    """Peak memory of training on a cache four times larger than the budget, against the same with all in memory."""
    if not Path("/proc/self/status").is_file():
        raise NotMeasured("needs Linux's /proc")
    count, rows, tiles = (4, 64, 8) if _is_tiny(inputs) else (16, 32768, 128)
    folder = _slides(inputs.folder / "train-memory", count, rows, inputs.scale.dim)
    cache = count * rows * inputs.scale.dim * 2 / 2**30

    def peak(memory_gb: float) -> Measured:
        command = [python(), "-m", "benchmarks.speed.train_memory", str(folder), str(memory_gb), str(tiles)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the measured process failed:\n{done.stderr}")
        answer = json.loads(done.stdout)
        return Measured(value=max(answer["mb"], 1.0), result=(answer["where"], answer["weights"]))

    def same(ours: tuple[str, list[float]], whole: tuple[str, list[float]]) -> bool:
        return (ours[0], whole[0]) == ("maps", "memory") and np.allclose(ours[1], whole[1], rtol=1e-5)

    def over(sides: Sides) -> float:
        return sides.ours / (cache / 4 * 2**10)

    return Case(
        name=f"peak memory of training on {cache * 2**10:,.3g} MB of features with a budget of a quarter",
        against="with all features in memory",
        ours=lambda: peak(cache / 4),
        reference=lambda: peak(cache * 4),
        same=same,
        measure="MB",
        threads=None,
        figures=(
            Figure(text="with a budget of a quarter {} MB", of=lambda s: s.ours),
            Figure(text="over the budget {}", of=over),
        ),
        most_rounds=2,
    )
