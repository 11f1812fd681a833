"""The engine end to end, on painted slides and with networks of random weights, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch

from benchmarks.speed.harness import Case, case
from benchmarks.speed.inputs import Inputs, resident_tiles
from histotl.backbones._network import NetworkEmbedder
from histotl.backbones._preprocess import prepare
from histotl.backbones.base import Backbone, Embedder
from histotl.core.registry import create
from histotl.embed.config import EmbedConfig, TileConfig
from histotl.embed.device import choose_batch_size, choose_workers, compute_settings
from histotl.embed.engine import embed_slides
from histotl.store import layout
from histotl.store.embeddings import open_embeddings

NETWORK = "timm/mobilenetv3_small_100(weights='random')"
SCATTERING = "scattering"
CPU = torch.device("cpu")


def _config(*backbones: str) -> EmbedConfig:
    return EmbedConfig(backbone=backbones, device="cpu", overwrite=True)


def _embed(slides: Path, out: Path, tiling: TileConfig, *backbones: str) -> int:
    """Embed, all slides or an error; returns the number of tiles."""
    summary = embed_slides(slides, out, tiling=tiling, config=_config(*backbones))
    if summary.failed:
        raise RuntimeError(str(summary.failed[0]))
    return summary.n_tiles


def _load(spec: str) -> Embedder:
    return cast("Backbone", create("backbone", spec)).load(CPU)


def _bare_forward(spec: str, tiles: torch.Tensor) -> Callable[[], torch.Tensor]:
    """The network alone, on tiles in memory in the form that it takes, in the engine's batches and threads."""
    embedder, config = _load(spec), _config(spec)
    batches = torch.split(tiles, choose_batch_size(config, CPU, tiles.shape[1]))
    if isinstance(embedder, NetworkEmbedder):
        forward, inputs = embedder.forward, [prepare(batch, embedder.card) for batch in batches]
    else:
        forward, inputs = embedder, list(batches)

    def run() -> torch.Tensor:
        with torch.inference_mode(), compute_settings(choose_workers(config, CPU)):
            return torch.cat([forward(batch) for batch in inputs])

    return run


def _end_to_end(inputs: Inputs, spec: str, name: str, tiling: TileConfig, rounds: int) -> Case:
    slide, out = inputs.ordinary, inputs.folder / f"embedded-{name}"
    tiles = resident_tiles(slide, tiling)
    card = _load(spec).card

    def same(_: int, wanted: torch.Tensor) -> bool:
        with open_embeddings(layout.features_path(out, tiling.spec, card, slide.stem)) as file:
            return np.allclose(file.read(), wanted.numpy(), rtol=1e-2, atol=1e-3)

    return Case(
        name=f"embed_slides, {name}, {len(tiles)} tiles of 224 px",
        against="bare forward on resident tiles, same batches and threads (floor)",
        ours=lambda: _embed(slide, out, tiling, spec),
        reference=_bare_forward(spec, tiles),
        same=same,
        goal=1 / 0.95,
        threads=None,
        units=len(tiles),
        unit="tiles",
        most_rounds=rounds,
    )


@case("embed/network")
def network(inputs: Inputs) -> Case:
    """A small CNN: the faster the network, the more the rest of the engine shows."""
    tiling = TileConfig(overlap_px=inputs.scale.overlap_px)
    return _end_to_end(inputs, NETWORK, "mobilenetv3_small_100", tiling, 3)


@case("embed/scattering")
def scattering_slide(inputs: Inputs) -> Case:
    """The default backbone."""
    return _end_to_end(inputs, SCATTERING, "scattering", TileConfig(), 3)


@case("embed/two-backbones")
def two_backbones(inputs: Inputs) -> Case:
    """One read for both, against one run each."""
    slide, tiling = inputs.ordinary, TileConfig()
    both, one, other = (inputs.folder / name for name in ("both", "first", "second"))
    return Case(
        name="embed_slides, mobilenetv3_small_100 and color_stats in one read",
        against="the sum of two runs",
        ours=lambda: _embed(slide, both, tiling, NETWORK, "color_stats"),
        reference=lambda: _embed(slide, one, tiling, NETWORK) + _embed(slide, other, tiling, "color_stats"),
        same=lambda tiles, sum_of_both: 2 * tiles == sum_of_both,
        threads=None,
        most_rounds=3,
    )


@case("embed/small-slides")
def small_slides(inputs: Inputs) -> Case:
    """What a slide costs beside its tiles."""
    many, one = inputs.small_slides, inputs.large_slide
    count, tiling = inputs.scale.small_slides, TileConfig(min_tissue=0)
    tiles = int(np.prod(inputs.scale.large_tiles))
    return Case(
        name=f"embed_slides, {count} slides of {tiles // count} tiles, mobilenetv3_small_100",
        against=f"one slide of {tiles} tiles",
        ours=lambda: _embed(many, inputs.folder / "many", tiling, NETWORK),
        reference=lambda: _embed(one, inputs.folder / "one", tiling, NETWORK),
        same=lambda a, b: a == b == tiles,
        threads=None,
        note=lambda a, b: f"{(a - b) / (count - 1) * 1e3:.0f} ms more a slide, goal ≤ 50",
        most_rounds=3,
    )


@case("backbone/scattering")
def scattering_batch(inputs: Inputs) -> Case:
    """The default backbone beside one of the fastest networks there are."""
    tiles, scattering, net = inputs.batch, _load(SCATTERING), _load(NETWORK)

    def forward(embedder: Embedder) -> torch.Tensor:
        with torch.inference_mode():
            return embedder(tiles)

    return Case(
        name="scattering, tiles of 224 px, one thread",
        against="mobilenetv3_small_100 on the same tiles",
        ours=lambda: forward(scattering),
        reference=lambda: forward(net),
        same=lambda a, b: len(a) == len(b),
        units=len(tiles),
        unit="tiles",
    )
