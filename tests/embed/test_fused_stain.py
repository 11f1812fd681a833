"""Normalising a stain on the way into the network, as on a GPU: the features of two passes, from one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from histotl.backbones._network import NetworkEmbedder
from histotl.core.registry import create
from histotl.core.values import FeatureIdentity
from histotl.embed._models import Model
from histotl.embed.config import EmbedConfig, TileConfig
from histotl.embed.engine import embed_slides
from histotl.image import _transforms
from histotl.image._transforms import OdTransform
from histotl.store import layout
from histotl.store.embeddings import open_embeddings

MACENKO = OdTransform(matrix=((1.12, -0.08, 0.05), (0.03, 0.85, -0.02), (-0.1, 0.2, 1.3)), state={})
RESNET = "timm/resnet18(weights='random', input_px=64)"

pytestmark = pytest.mark.usefixtures("gpu_kernels")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Which of its two ways the transform went, and with how many tiles."""
    seen: list[tuple[str, int]] = []
    plain, fused = OdTransform.__call__, OdTransform.prepared

    def count(name, real):
        return lambda self, tiles, **how: seen.append((name, len(tiles))) or real(self, tiles, **how)

    monkeypatch.setattr(OdTransform, "__call__", count("tiles", plain))
    monkeypatch.setattr(OdTransform, "prepared", count("input", fused))
    return seen


def model(spec: str = RESNET) -> Model:
    embedder = create("backbone", spec).load(torch.device("cpu"))
    identity = FeatureIdentity.of(embedder.card, None, stain="none", compute="fp32", dtype="fp32")
    return Model(spec=spec, embedder=embedder, device=torch.device("cpu"), identity=identity)


def tiles(side: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (4, side, side, 3), dtype=np.uint8))


def test_features_are_those_of_two_passes(calls) -> None:
    network, batch = model(), tiles(64)
    fused = network(batch, MACENKO)
    assert calls == [("input", 4)]
    torch.testing.assert_close(fused, network(MACENKO(batch)), rtol=1e-5, atol=1e-6)
    assert (fused - network(batch)).abs().max() > 1e-3  # it does something


@pytest.mark.parametrize(("spec", "side"), [(RESNET, 48), ("color_stats", 64)])
def test_what_resizes_or_takes_tiles_gets_normalised_tiles(calls, spec: str, side: int) -> None:
    network, batch = model(spec), tiles(side)
    fused = network(batch, MACENKO)
    assert calls == [("tiles", 4)]
    assert torch.equal(fused, network(MACENKO(batch)))


def test_a_batch_that_does_not_fit_is_halved_and_normalised(calls, monkeypatch: pytest.MonkeyPatch) -> None:
    network, batch = model(), tiles(64)
    wanted, real = network(batch, MACENKO), NetworkEmbedder.of_input

    def small(self: NetworkEmbedder, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 2:
            raise torch.OutOfMemoryError("no room")
        return real(self, images)

    monkeypatch.setattr(NetworkEmbedder, "of_input", small)
    calls.clear()
    torch.testing.assert_close(network(batch, MACENKO), wanted, rtol=1e-5, atol=1e-6)
    assert calls == [("input", 4), ("input", 2), ("input", 2)]


@pytest.mark.parametrize(("views", "way"), [(0, "input"), (1, "tiles")])
def test_a_run_takes_the_short_way_unless_it_makes_views(
    slides: Path, tmp_path: Path, calls, monkeypatch: pytest.MonkeyPatch, views: int, way: str
) -> None:
    """Views are made of normalised tiles, so those are needed then."""
    tiling = TileConfig(mpp=2.0, tile_px=64)
    config = EmbedConfig(backbone=(RESNET,), device="cpu", stain="macenko", quality="none", batch_size=8, dtype="fp32")
    config = dataclasses.replace(config, views=views, augment="d4" if views else config.augment)

    def features(out: Path) -> np.ndarray:
        assert not embed_slides(slides / "a.tiff", out, tiling=tiling, config=config).failed
        with open_embeddings(layout.features_path(out, tiling.spec, model().card, "a")) as file:
            return file.read()

    found = features(tmp_path / "fused")
    assert {name for name, _ in calls} == {way}
    calls.clear()
    monkeypatch.setattr(_transforms._ColourFunction, "is_fused", lambda self, tiles: False)
    np.testing.assert_allclose(found, features(tmp_path / "apart"), rtol=1e-5, atol=1e-6)
    assert {name for name, _ in calls} == {"tiles"}
