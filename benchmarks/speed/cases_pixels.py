"""Between tile and network: stain normalisation and the network's input. One thread, one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch

from benchmarks.speed.harness import Case, Figure, case
from benchmarks.speed.inputs import Inputs
from histotl.backbones._preprocess import prepare
from histotl.core.registry import create
from histotl.core.values import BackboneCard
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
