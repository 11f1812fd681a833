"""``embed_slides`` as the command runs it, and the bare networks beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import timm
import torch

from benchmarks.speed.harness import torch_threads
from histotl.backbones._network import NetworkEmbedder
from histotl.backbones._preprocess import prepare
from histotl.backbones.base import Backbone, Embedder
from histotl.core.allocator import large_blocks_kept
from histotl.core.registry import create
from histotl.embed.config import EmbedConfig, TileConfig
from histotl.embed.engine import embed_slides
from histotl.embed.summary import RunSummary
from histotl.store import layout
from histotl.store.embeddings import open_embeddings

CPU = torch.device("cpu")

_TRIAL_TILES, _TRIAL_BATCHES, _TRIAL_TURNS = 64, (8, 16, 32), 3
_RESIDENT = 512
"""Prepared tiles that are held; a larger number is reached by going round. Far beyond any cache of the processor."""


def embed(
    slides: Path,
    out: Path,
    *backbones: str,
    tiling: TileConfig | None = None,
    dtype: str = "",
    stain: str = "none",
    device: str = "cpu",
) -> RunSummary:
    """Embed as the command does, but for the quality figures: what is beside it in the table has none.

    All slides, or an error.
    """
    config = EmbedConfig(backbone=backbones, device=device, overwrite=True, quality="none", stain=stain)
    if dtype:
        config = replace(config, dtype=dtype)  # type: ignore[arg-type]  # one of its names
    summary = embed_slides(slides, out, tiling=tiling or TileConfig(), config=config)
    if summary.failed:
        raise RuntimeError(str(summary.failed[0]))
    return summary


def load(spec: str, device: torch.device = CPU) -> Embedder:
    """A backbone, ready."""
    return cast("Backbone", create("backbone", spec)).load(device)


def features(out: Path, spec: str, slide: Path, tiling: TileConfig | None = None) -> npt.NDArray[np.floating]:
    """What an earlier :func:`embed` wrote for a slide."""
    path = layout.features_path(out, (tiling or TileConfig()).spec, load(spec).card, slide.stem)
    with open_embeddings(path) as file:
        return file.read()


def thread_counts() -> tuple[int, ...]:
    """Threads of torch that one forward pass is tried with: one, and all that torch has."""
    return tuple(sorted({1, torch.get_num_threads()}))


class Bare:
    """A network of timm with random weights, as fast as torch alone runs one forward pass: the floor.

    Threads, memory order of the images and batch are those that win in a short trial. Tiles are resident, float and
    normalised. Freed memory is kept for the next batch, as in our runs.

    Args:
        spec: Of our backbone, whose weights it gets.
        name: Of timm.
        tiles: uint8 (n, h, w, 3).
    """

    def __init__(self, spec: str, name: str, tiles: torch.Tensor) -> None:
        embedder = cast("NetworkEmbedder", load(spec))
        self.name, self.state = name, embedder.module.state_dict()
        some = tiles[:_RESIDENT]
        self.images = torch.cat([prepare(part, embedder.card) for part in some.split(32)])
        self.threads, self.order, self.batch = self._trial()
        self.images = self.images.contiguous(memory_format=self.order)

    @property
    def form(self) -> str:
        """What won, in words."""
        order = "channels-last" if self.order == torch.channels_last else "NCHW"
        tried = " or ".join(map(str, thread_counts()))
        return f"{order}, batches of {self.batch}, {self.threads} threads: the best of both orders and {tried} threads"

    def load(self) -> torch.nn.Module:
        """The network; part of the floor's time, as loading is part of ours."""
        net: torch.nn.Module = timm.create_model(self.name, pretrained=False, num_classes=0)
        net.load_state_dict(self.state)
        return net.eval().to(memory_format=self.order)

    def run(self, count: int) -> torch.Tensor:
        """Load, and embed a number of tiles; gives the features of those that are resident."""
        with torch.inference_mode(), torch_threads(self.threads), large_blocks_kept():
            net, made, done = self.load(), [], 0
            while done < count:
                for images in self.images[: count - done].split(self.batch):
                    made.append(net(images))
                    done += len(images)
        return torch.cat(made)[: len(self.images)]

    def side_by_side(self, count: int, forwards: int) -> float:
        """Tiles a second of several forward passes at once, each on one thread, in the order and batches that won."""
        parts = self.images[: min(count, len(self.images))].split(self.batch)
        shares = [parts[place::forwards] for place in range(forwards)]

        def work(share: Sequence[torch.Tensor]) -> int:
            torch.set_num_threads(1)
            with torch.inference_mode():
                return sum(len(net(images)) for images in share)

        with torch_threads(1), large_blocks_kept(in_threads=True), ThreadPoolExecutor(forwards) as pool:
            net = self.load()
            list(pool.map(work, [share[:1] for share in shares]))  # warm
            began = time.perf_counter()
            return sum(pool.map(work, shares)) / (time.perf_counter() - began)

    def _trial(self) -> tuple[int, torch.memory_format, int]:
        images = self.images[: min(_TRIAL_TILES, len(self.images))]
        times: dict[tuple[int, torch.memory_format, int], float] = {}
        with torch.inference_mode(), large_blocks_kept():
            for order in (torch.channels_last, torch.contiguous_format) * _TRIAL_TURNS:
                self.order = order
                net, ordered = self.load(), images.contiguous(memory_format=order)
                for threads, batch in product(thread_counts(), _TRIAL_BATCHES):
                    parts = ordered.split(batch)
                    with torch_threads(threads):
                        net(parts[0])
                        # The fastest of several turns, as a neighbour on the machine can only add to it.
                        key = threads, order, batch
                        times[key] = min(_seconds(net, parts), times.get(key, math.inf))
        return min(times, key=lambda key: times[key])


def best_threads(work: Callable[[], object]) -> int:
    """The number of torch's threads with which some work is fastest, of :func:`thread_counts`."""

    def seconds(threads: int) -> float:
        with torch_threads(threads):
            work()
            times = []
            for _ in range(_TRIAL_TURNS):
                began = time.perf_counter()
                work()
                times.append(time.perf_counter() - began)
            return min(times)

    return min(thread_counts(), key=seconds)


def _seconds(net: torch.nn.Module, batches: Sequence[torch.Tensor]) -> float:
    began = time.perf_counter()
    for batch in batches:
        net(batch)
    return time.perf_counter() - began
