"""Painted slides of two laboratories that stain differently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from histotl.paint.slide import paint_slide
from histotl.paint.values import SlideRecipe, Stain
from histotl.wsi.pyramid import write_pyramid

WHITE = (243.0, 242.0, 242.0)
STAINS = {
    "north": Stain(first=(0.68, 0.68, 0.28), second=(0.10, 0.97, 0.20), white=WHITE, strengths=(0.32, 0.20)),
    "south": Stain(first=(0.52, 0.80, 0.30), second=(0.22, 0.90, 0.37), white=WHITE, strengths=(0.24, 0.15)),
}
SLIDES_OF_A_SITE = 4


@pytest.fixture(scope="session")
def two_sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table of four slides of each of two sites; ``north-0`` and ``north-1`` are of one patient."""
    return paint_sites(tmp_path_factory.mktemp("two_sites"), STAINS)


@pytest.fixture(scope="session")
def two_sites_of_two_glasses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same where that of the south is grey with a tint."""
    glass = {**STAINS, "south": replace(STAINS["south"], white=(225.0, 220.0, 228.0))}
    return paint_sites(tmp_path_factory.mktemp("two_glasses"), glass)


def paint_sites(folder: Path, stains: Mapping[str, Stain]) -> Path:
    lines = ["slide_id,path,site,patient"]
    for place, (site, stain) in enumerate(stains.items()):
        for i in range(SLIDES_OF_A_SITE):
            rng = np.random.default_rng([place, i])
            name = f"{site}-{i}"
            varied = replace(stain, strengths=tuple(s * rng.uniform(0.95, 1.05) for s in stain.strengths))
            paint(folder / f"{name}.tiff", varied, rng)
            lines.append(f"{name},{name}.tiff,{site},{'N0' if name in ('north-0', 'north-1') else name}")
    table = folder / "slides.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def paint(path: Path, stain: Stain, rng: np.random.Generator) -> None:
    recipe = SlideRecipe(slide_id=path.stem, background="normal", stain=stain, fragments=1, size_um=(480.0, 420.0))
    painted = paint_slide(recipe, rng)
    write_pyramid(path, painted.image, mpp=painted.mpp)


@pytest.fixture(scope="session")
def odd_slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one good slide, one of bare glass, and one of a single stain."""
    folder = tmp_path_factory.mktemp("odd")
    paint(folder / "good.tiff", STAINS["north"], np.random.default_rng(5))
    # Thick and thin tissue in haematoxylin alone, on glass.
    y, x = np.mgrid[:840, :960]
    density = np.where(np.hypot(x - 480, y - 420) < 380, 0.9 + 0.6 * np.sin(x / 9) * np.sin(y / 11), 0.0)
    light = 256 * np.exp(-density[..., None] * np.array([0.65, 0.70, 0.29])) - 1
    write_pyramid(folder / "one_stain.tiff", np.rint(light).astype(np.uint8), mpp=0.5)
    write_pyramid(folder / "white.tiff", np.full((840, 960, 3), 243, dtype=np.uint8), mpp=0.5)
    return folder
