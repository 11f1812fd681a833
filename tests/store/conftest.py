"""Values to store: a slide, a grid, a card and what goes with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from histotl.core.provenance import Provenance
from histotl.core.values import BackboneCard, FeatureIdentity, Level, SlideInfo, TileGrid, TileSpec
from histotl.store.embeddings import EmbeddingsMeta, EmbeddingsWriter


def _slide(slide_id: str = "a slide", mpp: float = 0.25, fingerprint: str = "f00d") -> SlideInfo:
    return SlideInfo(
        path=Path("/somewhere/secret") / f"{slide_id}.svs",
        slide_id=slide_id,
        reader="array",
        vendor="painted",
        width=40_000,
        height=30_000,
        mpp_x=mpp,
        mpp_y=mpp,
        mpp_source="aperio.MPP",
        levels=(Level(width=40_000, height=30_000, downsample=1.0),),
        bounds_l0=(0, 0, 40_000, 30_000),
        fingerprint=fingerprint,
    )


def _grid(n: int, mpp: float = 0.25, spec: TileSpec | None = None) -> TileGrid:
    spec = TileSpec() if spec is None else spec
    side = spec.tile_px * spec.mpp / mpp
    places = np.arange(n)
    coords = np.stack([places % 30 * int(side), places // 30 * int(side)], axis=1).astype(np.int64)
    tissue = np.linspace(0.5, 1, n, dtype=np.float32)
    return TileGrid(spec=spec, coords_l0=coords, footprint_l0=(side, side), read_level=0, tissue_fraction=tissue)


def _card(dim: int, name: str = "timm/resnet50.a1_in1k") -> BackboneCard:
    return BackboneCard(name=name, dim=dim, pooling="avg", input_px=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def _meta(
    n: int,
    dim: int,
    *,
    dtype: str = "fp16",
    mpp: float = 0.25,
    stain: str = "none",
    slide_id: str = "a slide",
    patches: bool = False,
    spec: TileSpec | None = None,
) -> EmbeddingsMeta:
    card, grid = _card(dim), _grid(n, mpp, spec)
    identity = FeatureIdentity.of(card, None if patches else grid.spec, stain=stain, compute="fp32", dtype=dtype)
    common = {"identity": identity, "card": card, "provenance": Provenance.now(specs={"stain": stain})}
    if patches:
        return EmbeddingsMeta(**common, items=tuple(f"größe/{i}.png" for i in range(n)), source_fingerprint="beef")
    slide = _slide(slide_id, mpp)
    return EmbeddingsMeta(**common, slide=slide, grid=grid, stain_state={"matrix": np.eye(3), "fitted": True})


@pytest.fixture(scope="session")
def make_meta() -> Callable[..., EmbeddingsMeta]:
    return _meta


@pytest.fixture(scope="session")
def write_file() -> Callable[..., np.ndarray]:
    """Writes a file of random features and returns them as they must come back (float32)."""

    def write(
        path: Path, n: int = 7, dim: int = 5, *, dtype: str = "fp16", seed: int = 0, **more: object
    ) -> np.ndarray:
        features = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
        meta = _meta(n, dim, dtype=dtype, **more)
        with EmbeddingsWriter(path, n=n, dim=dim, dtype=dtype, meta=meta) as writer:
            writer.put(np.arange(n), features)
            writer.seal()
        return features.astype(np.float16 if dtype == "fp16" else np.float32).astype(np.float32)

    return write
