"""Training on bags of tiles: packed, one at a time, padded, and the matrix products alone. Random features."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.speed.harness import Case, Measured, case
from benchmarks.speed.inputs import Inputs
from histotl.core.allocator import large_blocks_kept
from histotl.core.registry import create
from histotl.learn.aggregators.abmil import Abmil
from histotl.learn.bags import Bags
from histotl.learn.network import Architecture, Network
from histotl.learn.objective import Objective
from histotl.learn.rows import ArrayRows
from histotl.learn.task import Task

BAG_BATCH = 16
SPREAD = 0.8
"""Deviation of the logarithm of bag sizes."""

SPEC = "abmil(hidden=512, attention=256)"
"""CLAM's size."""

ABMIL = cast("Abmil", create("aggregator", SPEC))


class Plain(torch.nn.Module):
    """Gated attention as it is usually written."""

    def __init__(self, in_dim: int) -> None:
        super().__init__()
        width, inner = ABMIL.hidden, ABMIL.attention
        linear = torch.nn.Linear
        self.embed = torch.nn.Sequential(linear(in_dim, width), torch.nn.ReLU(), torch.nn.Dropout(ABMIL.dropout))
        self.v = torch.nn.Sequential(linear(width, inner), torch.nn.Tanh())
        self.u = torch.nn.Sequential(linear(width, inner), torch.nn.Sigmoid())
        self.score = linear(inner, 1, bias=False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(b, n, d) and bool (b, n) into (b, width)."""
        h = self.embed(x)
        scores = self.score(self.v(h) * self.u(h))[:, :, 0].masked_fill(~mask, -torch.inf)
        return (scores.softmax(1)[:, None] @ h)[:, 0]


class Epoch:
    """Bags of log-normal sizes and the network that is trained on them, in the ways that are compared.

    Args:
        inputs: How large.
        bags: How many; 0 for the scale's.
        middle: Tiles of a bag, as the median of their distribution; 0 for slides of hundreds.
    """

    def __init__(self, inputs: Inputs, bags: int = 0, middle: float = 0) -> None:
        scale, rng = inputs.scale, np.random.default_rng(7)
        middle = middle or float(np.sqrt(scale.bag_rows[0] * scale.bag_rows[1]))
        bags = bags or scale.bags
        sizes = np.maximum(1, middle * np.exp(SPREAD * rng.standard_normal(bags))).astype(np.int64)
        self.x = rng.standard_normal((int(sizes.sum()), scale.dim), dtype=np.float32)
        self.bags = Bags.of(ArrayRows(self.x), np.split(np.arange(len(self.x)), np.cumsum(sizes)[:-1]))
        labels = {"type": np.arange(bags) % 3.0}
        self.objective = Objective([Task(name="type", kind="multiclass", classes=("a", "b", "c"))], labels)
        self.targets = self.objective.tensor(labels)
        self.architecture = Architecture(
            in_dim=scale.dim, aggregator=SPEC, hidden=256, dropout=0.5, outputs=self.objective.n_outputs()
        )

    @property
    def title(self) -> str:
        """What the case is called."""
        shape = self.bags.sizes
        width = f"{self.architecture.in_dim} → {ABMIL.hidden} → {ABMIL.attention}"
        return f"gated attention {width}, epoch of {len(shape)} bags of {shape.min()}–{shape.max()} tiles"

    def packed(self, bags_a_step: int) -> None:
        """Optimiser steps over all bags once, as training does them."""
        network = Network(self.architecture)

        def answers(chosen: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
            packed = self.bags.gather(chosen)
            return network(packed.x, packed.offsets).tasks

        self._steps(network, bags_a_step, answers)

    def plain(self, bags_a_step: int) -> None:
        """The same network of plain modules on bags filled up with zeros to the longest of a step, under a mask."""
        network, module = Network(self.architecture), Plain(self.architecture.in_dim)
        network.aggregator = module

        def answers(chosen: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
            sizes = torch.from_numpy(self.bags.sizes[chosen])
            x = torch.zeros(len(chosen), int(sizes.max()), self.architecture.in_dim)
            for row, bag in zip(x, chosen, strict=True):
                part = self.x[self.bags.rows_of(int(bag))]
                row[: len(part)] = torch.from_numpy(part)
            mask = torch.arange(x.shape[1]) < sizes[:, None]
            return network.answer(module((x - network.mean) / network.std, mask))

        self._steps(network, bags_a_step, answers)

    def products(self) -> None:
        """The matrix products of all steps, forward and backward, with nothing between them."""
        d, width, gates = self.architecture.in_dim, ABMIL.hidden, 2 * ABMIL.attention
        w, u = torch.randn(width, d), torch.randn(gates, width)
        of_w, of_u = torch.empty_like(w), torch.empty_like(u)
        for chosen in _parts(len(self.bags), BAG_BATCH):
            start, stop = self.bags.offsets[chosen[0]], self.bags.offsets[chosen[-1] + 1]
            x, h, g = torch.from_numpy(self.x[start:stop]), self._h[: stop - start], self._g[: stop - start]
            torch.mm(x, w.T, out=h)
            torch.mm(h, u.T, out=g)
            torch.mm(g.T, h, out=of_u)
            torch.mm(g, u, out=h)
            torch.mm(h.T, x, out=of_w)

    def prepare_products(self) -> None:
        """Room for their results, made once."""
        most = max(int(self.bags.sizes[chosen].sum()) for chosen in _parts(len(self.bags), BAG_BATCH))
        self._h, self._g = torch.zeros(most, ABMIL.hidden), torch.zeros(most, 2 * ABMIL.attention)

    def _steps(
        self, network: Network, bags_a_step: int, answers: Callable[[npt.NDArray[np.int64]], dict[str, torch.Tensor]]
    ) -> None:
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
        for chosen in _parts(len(self.bags), bags_a_step):
            losses = self.objective.losses(answers(chosen), self.targets[torch.from_numpy(chosen)])
            optimizer.zero_grad()
            self.objective.total(losses).backward()
            optimizer.step()


@case("learn/mil-batch-1")
def one_at_a_time(inputs: Inputs) -> Case:
    """An epoch of gated attention, sixteen packed bags a step, against a step for every bag as most tools do it."""
    return _against_plain(Epoch(inputs), 1, "plain modules, one bag a step")


@case("learn/mil-specimens")
def specimens(inputs: Inputs) -> Case:
    """The same with specimens of a few patches, as polyp data sets have them: one is little work for a product."""
    epoch = Epoch(inputs, bags=min(8 * inputs.scale.bags, 128), middle=5)
    return _against_plain(epoch, 1, "plain modules, one bag a step")


@case("learn/mil-padded")
def padded(inputs: Inputs) -> Case:
    """The same against the same steps on padded bags with a mask."""
    epoch = Epoch(inputs)
    steps = [epoch.bags.sizes[chosen] for chosen in _parts(len(epoch.bags), BAG_BATCH)]
    cells = sum(len(sizes) * int(sizes.max()) for sizes in steps)
    how = f"plain modules, padded with a mask, {cells / len(epoch.x):.1f} cells a tile"
    return _against_plain(epoch, BAG_BATCH, how)


def _against_plain(epoch: Epoch, bags_a_step: int, how: str) -> Case:
    return Case(
        name=f"{epoch.title}, packed by {BAG_BATCH}",
        against=how,
        goal=1 / 3,
        ours=lambda: _in_a_run(lambda: epoch.packed(BAG_BATCH), large_blocks_kept()),
        reference=lambda: _in_a_run(lambda: epoch.plain(bags_a_step)),
        units=len(epoch.x),
        unit="tiles",
    )


@case("learn/mil-products")
def products(inputs: Inputs) -> Case:
    """The same against the matrix products alone."""
    epoch = Epoch(inputs)
    epoch.prepare_products()
    return Case(
        name=f"{epoch.title}, packed by {BAG_BATCH}",
        against="its matrix products alone, forward and backward (floor)",
        goal=1.25,
        ours=lambda: _in_a_run(lambda: epoch.packed(BAG_BATCH), large_blocks_kept()),
        reference=lambda: _in_a_run(epoch.products),
        units=len(epoch.x),
        unit="tiles",
    )


def _in_a_run(epoch: Callable[[], None], settings: AbstractContextManager[None] | None = None) -> Measured:
    """Time of an epoch that follows another; with the settings of the allocator that training makes, or torch's own."""
    with settings or nullcontext():
        epoch()
        began = time.perf_counter()
        epoch()
        return Measured(value=time.perf_counter() - began)


def _parts(n: int, size: int) -> list[npt.NDArray[np.int64]]:
    return np.split(np.arange(n), range(size, n, size))
