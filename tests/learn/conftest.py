"""Small synthetic cohorts, in memory and as real embeddings files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from histotl.core.provenance import Provenance
from histotl.core.values import BackboneCard, FeatureIdentity, Level, SlideInfo, TileGrid, TileSpec
from histotl.learn._trainer import Data
from histotl.learn.bags import Bags
from histotl.learn.config import TrainConfig
from histotl.learn.fit import Labelled
from histotl.learn.rows import ArrayRows
from histotl.store.embeddings import EmbeddingsMeta, EmbeddingsWriter, QualitySpec, ViewSpec

DIM = 16


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def quick() -> TrainConfig:
    """Settings that train in a fraction of a second."""
    return TrainConfig(
        hidden=16, members=1, min_steps=60, max_steps=60, learning_rates=(0.01,), dropout=0.0, device="cpu"
    )


@pytest.fixture
def labelled() -> Callable[..., Labelled]:
    """Bags of given rows with targets."""

    def make(x: np.ndarray, targets: dict[str, np.ndarray], sizes: list[int] | None = None) -> Labelled:
        source = ArrayRows(x.astype(np.float32))
        if sizes is None:
            return Labelled(bags=Bags.singles(source, np.arange(len(x))), targets=targets)
        groups = np.split(np.arange(len(x)), np.cumsum(sizes)[:-1])
        return Labelled(bags=Bags.of(source, groups), targets=targets)

    return make


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Grows by the rows of every step and of every look of the trainings of a test."""
    found: list[np.ndarray] = []
    plain = Data.draw

    def draw(self: Data, rows: np.ndarray, **rest: object) -> object:
        found.append(rows)
        return plain(self, rows, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Data, "draw", draw)
    return found


def card(name: str = "scattering", dim: int = DIM) -> BackboneCard:
    return BackboneCard(name=name, dim=dim, pooling="avg", input_px=224, mean=(0.5,) * 3, std=(0.5,) * 3)


def _identity(stain: str, tiles: TileSpec | None, name: str, dim: int = DIM) -> FeatureIdentity:
    return FeatureIdentity.of(card(name, dim), tiles, stain=stain, compute="fp32", dtype="fp32")


def _extras(views: np.ndarray | None, seed: int = 0) -> tuple[ViewSpec, ...]:
    return () if views is None else (ViewSpec(augment="d4", count=len(views), seed=seed),)


def _put_views(writer: EmbeddingsWriter, views: np.ndarray | None) -> None:
    for number, view in enumerate(() if views is None else views):
        writer.put_view(number, np.arange(len(view)), view.astype(np.float32))


@pytest.fixture
def write_patches() -> Callable[..., Path]:
    """Writes a patch set; returns its file."""

    def write(
        path: Path,
        items: list[str],
        x: np.ndarray,
        *,
        stain: str = "none",
        name: str = "scattering",
        views: np.ndarray | None = None,
    ) -> Path:
        meta = EmbeddingsMeta(
            identity=_identity(stain, None, name),
            card=card(name),
            provenance=Provenance.now(),
            items=tuple(items),
            extras=_extras(views),
        )
        with EmbeddingsWriter(path, n=len(x), dim=x.shape[1], dtype="fp32", meta=meta) as writer:
            writer.put(np.arange(len(x)), x.astype(np.float32))
            _put_views(writer, views)
            writer.seal()
        return path

    return write


@pytest.fixture
def write_slide() -> Callable[..., Path]:
    """Writes one slide's features; returns its file."""

    def write(
        folder: Path,
        slide_id: str,
        x: np.ndarray,
        *,
        stain: str = "none",
        name: str = "scattering",
        views: np.ndarray | None = None,
        view_seed: int = 0,
        pen: np.ndarray | None = None,
    ) -> Path:
        n, side = len(x), 448
        corners = np.stack([np.arange(n) % 8, np.arange(n) // 8], axis=1).astype(np.int64) * side
        level = Level(width=10_000, height=10_000, downsample=1.0)
        slide = SlideInfo(
            path=Path(f"{slide_id}.tiff"),
            slide_id=slide_id,
            reader="array",
            vendor="test",
            width=10_000,
            height=10_000,
            mpp_x=0.25,
            mpp_y=0.25,
            mpp_source="manifest",
            levels=(level,),
            bounds_l0=(0, 0, 10_000, 10_000),
            fingerprint=slide_id,
        )
        spec = TileSpec()
        grid = TileGrid(
            spec=spec,
            coords_l0=corners,
            footprint_l0=(float(side), float(side)),
            read_level=0,
            tissue_fraction=np.ones(n, dtype=np.float32),
        )
        meta = EmbeddingsMeta(
            identity=_identity(stain, spec, name, x.shape[1]),
            card=card(name, x.shape[1]),
            provenance=Provenance.now(),
            slide=slide,
            grid=grid,
            source_fingerprint=slide_id,
            extras=_extras(views, view_seed)
            + (() if pen is None else (QualitySpec(columns=("pen",), measures=("pen()",)),)),
        )
        path = folder / f"{slide_id}.h5"
        with EmbeddingsWriter(path, n=n, dim=x.shape[1], dtype="fp32", meta=meta) as writer:
            writer.put(np.arange(n), x.astype(np.float32))
            _put_views(writer, views)
            if pen is not None:
                writer.put_quality(np.arange(n), pen.astype(np.float32)[:, None])
            writer.seal()
        return path

    return write


@pytest.fixture
def patch_cohort(tmp_path: Path, write_patches: Callable[..., Path]) -> tuple[pd.DataFrame, Path]:
    """Table and features of 240 patches of 40 patients in three separable classes, one of them rare."""
    rng = np.random.default_rng(0)
    n = 240
    patient = np.arange(n) // 6
    label = np.where(rng.random(n) < 0.12, 2, rng.integers(0, 2, n))
    centres = rng.normal(size=(3, DIM)) * 1.5
    x = centres[label] + rng.normal(size=(n, DIM))
    frame = pd.DataFrame(
        {
            "path": [f"{'abc'[k]}/{i:03d}.jpg" for i, k in enumerate(label)],
            "label": np.take(["normal", "low", "high"], label),
            "patient": [f"P{p:02d}" for p in patient],
            "split": np.where(patient < 24, "train", np.where(patient < 32, "val", "test")),
            "size": np.round(label + rng.normal(size=n) * 0.3, 3),
        }
    )
    features = write_patches(tmp_path / "features_scattering" / "patches.h5", list(frame["path"]), x)
    return frame, features


@pytest.fixture
def slide_cohort(tmp_path: Path, write_slide: Callable[..., Path]) -> tuple[pd.DataFrame, Path]:
    """Table and features folder of 36 slides; positive slides hold a few shifted tiles."""
    rng = np.random.default_rng(1)
    folder, rows = tmp_path / "20x_224px_0px_overlap" / "features_scattering", []
    for i in range(36):
        n, positive = int(rng.integers(3, 20)), i % 2
        x = rng.normal(size=(n, DIM))
        x[: 1 + n // 4] += 3.0 * positive
        write_slide(folder, f"S{i:02d}", x)
        split = "train" if i < 20 else "val" if i < 28 else "test"
        rows.append(
            {"slide_id": f"S{i:02d}", "patient": f"P{i:02d}", "split": split, "lesion": "yes" if positive else "no"}
        )
    return pd.DataFrame(rows), folder
