"""A prediction folder and a label table with known content, in the format that `predict` writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histotl.core.provenance import Provenance
from histotl.core.values import BackboneCard, FeatureIdentity, Level, SlideInfo, TileSpec
from histotl.learn.predictions import TILE_FOLDER, write_predictions
from histotl.learn.task import Task
from histotl.store.coords import write_coords
from histotl.store.embeddings import EmbeddingsMeta, EmbeddingsWriter
from histotl.store.layout import coords_path, features_path, geojson_path, thumbnail_path
from histotl.store.tile_scores import write_tile_scores
from histotl.wsi.mask import TissueMask, to_geojson
from histotl.wsi.tiling import plan_tiles

NASTY = '<script>alert(1)</script>|"a"&b$x$'

TASKS = (
    Task(name="dysplasia", kind="binary", column="label", classes=("no", "yes"), map={"normal": "no", "*": "yes"}),
    Task(name="lesion", kind="multiclass", column="label", classes=("normal", "lgin", "hgin", "adenoca")),
    Task(name="grade", kind="ordinal", column="label", classes=("normal", "lgin", "hgin", "adenoca")),
    Task(name="fraction", kind="regression", column="fraction"),
)


@dataclass(frozen=True, kw_only=True)
class Made:
    """Paths and content of a made-up study."""

    predictions: Path
    table: Path
    frame: pd.DataFrame
    labels: pd.DataFrame


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Made]:
    """Make a study: ``study(n=200, id_column="slide_id")``."""

    def make(*, n: int = 200, id_column: str = "slide_id", seed: int = 0, nasty: bool = False) -> Made:
        return make_study(tmp_path, n=n, id_column=id_column, seed=seed, nasty=nasty)

    return make


def make_study(folder: Path, *, n: int, id_column: str, seed: int, nasty: bool = False) -> Made:
    """Half of the rows are test; three patients are lost to their labels; eight rows are a split ``ood``."""
    rng = np.random.default_rng(seed)
    n_ood = 8
    truth = rng.choice(4, n, p=[0.35, 0.3, 0.2, 0.15])
    names = [f"slide-{i:03d}" for i in range(n)]
    if nasty:
        names[-1] = NASTY
    ood_names = [f"foreign-{i}" for i in range(n_ood)]
    patient = np.arange(n) // 2
    labels = pd.DataFrame(
        {
            id_column: names + ood_names,
            "patient": [f"{p:04d}" for p in patient] + [""] * n_ood,
            "site": list(np.where(patient % 3 == 0, "B", "A")) + ["brain"] * n_ood,
            "split": list(np.where(patient < n // 4, "train", "test")) + ["ood"] * n_ood,
            "label": [TASKS[1].classes[t] for t in truth] + [""] * n_ood,
            "fraction": [f"{t / 4 + 0.2 * rng.random():.3f}" for t in truth] + [""] * n_ood,
        }
    )
    labels.loc[[n - 2, n - 3, n - 4], ["label", "fraction"]] = ""
    frame = _predict(rng, truth, n_ood, id_column, names + ood_names)
    write_predictions(
        folder / "predictions",
        frame,
        tasks=TASKS,
        id_column=id_column,
        meta={"level": "slide", "features": str(folder / "job"), "model": "model"},
    )
    labels.to_csv(folder / "table.csv", index=False)
    return Made(predictions=folder / "predictions", table=folder / "table.csv", frame=frame, labels=labels)


def _predict(rng: np.random.Generator, truth: np.ndarray, n_ood: int, id_column: str, names: list[str]) -> pd.DataFrame:
    total = len(truth) + n_ood
    padded = np.concatenate([truth, rng.integers(0, 4, n_ood)])
    logits = rng.normal(size=(total, 4)) + 2.0 * np.exp(-((np.arange(4) - padded[:, None]) ** 2))
    p = np.exp(logits)
    p /= p.sum(axis=1, keepdims=True)
    frame = pd.DataFrame({id_column: names})
    yes = 1 - p[:, 0]
    frame["dysplasia"] = np.where(yes > 0.5, "yes", "no")
    frame["dysplasia:no"], frame["dysplasia:yes"] = 1 - yes, yes
    for task in TASKS[1:3]:
        frame[task.name] = [task.classes[i] for i in p.argmax(axis=1)]
        for i, name in enumerate(task.classes):
            frame[f"{task.name}:{name}"] = p[:, i]
    frame["grade:expected"] = p @ np.arange(4)
    frame["fraction"] = padded / 4 + 0.2 * rng.random(total)
    score = rng.gamma(4, 1, total) + np.where(np.arange(total) >= len(truth), 8.0, 0.0)
    frame["ood_score"], frame["ood_knn"] = score, score + rng.normal(size=total)
    frame["ood_p"] = 1 / (1 + np.argsort(np.argsort(score)))
    frame["ood_flag"] = score > 9.5
    frame["failure_score"] = -(p * np.log(p)).sum(axis=1)
    frame["n_tiles"] = rng.integers(20, 400, total)
    return frame


CARD = BackboneCard(name="scattering", dim=4, pooling="avg", input_px=224, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
SPEC = TileSpec(tile_px=224, mpp=0.5, min_tissue=0.25)


@pytest.fixture
def embedded(tmp_path: Path) -> Callable[..., Path]:
    """Make what `embed` writes for some slides of a study: ``embedded(made, ["slide-100"])``."""

    def make(made: Made, names: list[str], *, attention: bool = True) -> Path:
        return make_embedded(tmp_path / "job", made, names, attention=attention)

    return make


def make_embedded(out: Path, made: Made, names: list[str], *, attention: bool = True, width: int = 12000) -> Path:
    """Thumbnails, outlines, coordinates, features and tile scores of slides that are one blob of tissue each."""
    rng, height = np.random.default_rng(1), width * 2 // 3
    provenance = Provenance.now()
    for name in names:
        info = SlideInfo(
            path=Path(f"{name}.tif"),
            slide_id=name,
            reader="array",
            vendor="painted",
            width=width,
            height=height,
            mpp_x=0.5,
            mpp_y=0.5,
            mpp_source="manifest",
            levels=(Level(width=width, height=height, downsample=1.0),),
            bounds_l0=(0, 0, width, height),
        )
        picture, mask = _blob(rng)
        scale = (width / picture.shape[1], height / picture.shape[0])
        grid = plan_tiles(info, SPEC, mask, scale)
        thumbnail_path(out, name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(thumbnail_path(out, name))
        geojson_path(out, name).parent.mkdir(parents=True, exist_ok=True)
        tissue = TissueMask(mask=mask, scale_l0=scale, area_mm2=1.0)
        geojson_path(out, name).write_text(to_geojson(tissue, name=name))
        write_coords(coords_path(out, SPEC, name), info, grid, provenance)
        identity = FeatureIdentity.of(CARD, SPEC, stain="macenko(alpha=1.0)", compute="fp32", dtype="fp16")
        meta = EmbeddingsMeta(identity=identity, card=CARD, provenance=provenance, slide=info, grid=grid)
        path = features_path(out, SPEC, CARD, name)
        with EmbeddingsWriter(path, n=len(grid), dim=CARD.dim, dtype="fp16", meta=meta) as writer:
            writer.put(np.arange(len(grid)), np.zeros((len(grid), CARD.dim), dtype=np.float16))
            writer.seal()
        near = -np.hypot(*(grid.coords_l0 - np.array([width * 0.4, height * 0.5])).T)
        columns = {"ood_score": rng.random(len(grid))} | ({"attention": near} if attention else {})
        write_tile_scores(made.predictions / TILE_FOLDER / f"{name}.h5", grid.coords_l0, columns, {})
    return out


def _blob(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A pink disc with a hole on white glass, and its mask."""
    y, x = np.mgrid[:400, :600]
    radius = np.hypot((x - 280) / 1.4, y - 200) + 8 * np.sin(np.arctan2(y - 200, x - 280) * 7)
    mask = (radius < 150) & (np.hypot(x - 330, y - 180) > 30)
    picture = np.full((400, 600, 3), 243, dtype=np.uint8)
    picture[mask] = (np.array([205, 140, 185]) + rng.normal(0, 12, (int(mask.sum()), 1))).clip(0, 255).astype(np.uint8)
    return picture, mask
