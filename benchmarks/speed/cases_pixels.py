"""Between tile and network: stain normalisation and the network's input. One thread, one batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

import torch

from benchmarks.speed.harness import Case, Figure, Measured, NotMeasured, case
from benchmarks.speed.inputs import MPP, Inputs
from histotl.backbones._preprocess import prepare
from histotl.core.registry import create
from histotl.core.values import BackboneCard
from histotl.image.measures import Measures
from histotl.image.stain.base import StainNormalizer

CONVERSION = "uint8 → float32 of the same tiles (floor)"
REPEATS = 8
"""Batches in one timed call: in the first one the memory of the results is new, in a run it hardly ever is."""

_CARD = BackboneCard(
    name="any", dim=1, pooling="avg", input_px=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def _repeated(work: Callable[[], torch.Tensor]) -> torch.Tensor:
    for _ in range(REPEATS - 1):
        work()
    return work()


def _stain(inputs: Inputs, name: str, goal: float | None = None) -> Case:
    tiles = inputs.batch
    transform = cast("StainNormalizer", create("stain", name)).fit(tiles)
    return Case(
        name=f"{name} apply",
        against=CONVERSION,
        ours=lambda: _repeated(lambda: transform(tiles)),
        reference=lambda: _repeated(lambda: tiles.to(torch.float32)),
        same=lambda normal, plain: normal.shape == plain.shape and normal.dtype == torch.uint8,
        units=REPEATS * len(tiles),
        unit="tiles",
        figures=(Figure(text="{} ms a tile", of=lambda s: s.ours / (REPEATS * len(tiles)) * 1e3, goal=goal),),
    )


@case("stain/macenko")
def macenko(inputs: Inputs) -> Case:
    """Fitted before; only the application is timed, as in a run."""
    return _stain(inputs, "macenko", 0.28)


@case("stain/reinhard")
def reinhard(inputs: Inputs) -> Case:
    """Likewise."""
    return _stain(inputs, "reinhard")


@case("stain/histogram")
def histogram(inputs: Inputs) -> Case:
    """Likewise."""
    return _stain(inputs, "histogram")


@case("stain/macenko-torchstain")
def macenko_torchstain(inputs: Inputs) -> Case:
    """The same tiles by torchstain, whose one call estimates the stain of every tile and normalises it."""
    try:
        from torchstain.torch.normalizers import TorchMacenkoNormalizer
    except ImportError as error:
        raise NotMeasured("needs torchstain: pip install 'histotl[dev]'") from error
    tiles = inputs.batch
    transform = cast("StainNormalizer", create("stain", "macenko(white=255)")).fit(tiles)
    theirs, planar = TorchMacenkoNormalizer(), tiles.permute(0, 3, 1, 2)
    return Case(
        name="macenko apply",
        against="torchstain `normalize`, tile by tile",
        ours=lambda: transform(tiles),
        reference=lambda: [theirs.normalize(tile, stains=False)[0] for tile in planar],
        units=len(tiles),
        unit="tiles",
        goal=0.1,
        figures=(Figure(text="{} ms a tile", of=lambda s: s.ours / len(tiles) * 1e3, goal=0.28),),
    )


@case("stain/fit")
def fits(inputs: Inputs) -> Case:
    """The sample of a slide, estimated by every method; the slowest one's time is given."""
    tiles = inputs.batch

    def slowest() -> Measured:
        seconds = []
        for name in ("macenko", "vahadane", "ruifrok", "reinhard", "histogram"):
            began = time.perf_counter()
            cast("StainNormalizer", create("stain", name)).fit(tiles)
            seconds.append(time.perf_counter() - began)
        return Measured(value=max(seconds))

    return Case(
        name=f"stain fit, slowest of five methods, {len(tiles)} tiles",
        against="the goal of 0.3 s a slide",
        ours=slowest,
        reference=lambda: Measured(value=0.3),
        goal=1.0,
        figures=(Figure(text="{} s", of=lambda s: s.ours),),
    )


@case("pixels/prepare")
def prepared(inputs: Inputs) -> Case:
    """Mean, standard deviation and channels-last order on tiles of the right size."""
    tiles = inputs.batch
    return Case(
        name="prepare (normalise, channels last)",
        against=CONVERSION,
        ours=lambda: _repeated(lambda: prepare(tiles, _CARD)),
        reference=lambda: _repeated(lambda: tiles.to(torch.float32)),
        same=lambda ready, plain: ready.numel() == plain.numel(),
        units=REPEATS * len(tiles),
        unit="tiles",
    )


@case("pixels/quality")
def quality(inputs: Inputs) -> Case:
    """All quality figures of tiles at 0.5 µm a pixel."""
    tiles, measures = inputs.batch, Measures.parse("all")
    return Case(
        name=f"quality figures, {len(measures.columns)} of each tile",
        against=CONVERSION,
        ours=lambda: _repeated(lambda: measures(tiles, MPP)),
        reference=lambda: _repeated(lambda: tiles.to(torch.float32)),
        same=lambda found, plain: len(found) == len(plain),
        units=REPEATS * len(tiles),
        unit="tiles",
        figures=(Figure(text="{} ms a tile", of=lambda s: s.ours / (REPEATS * len(tiles)) * 1e3, goal=0.5),),
    )
