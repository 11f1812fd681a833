"""Stain evidence on real tissue: patches of each patient laid on glass side by side, as a slide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from histotl.core.registry import create
from histotl.evaluate.stain.config import StainConfig
from histotl.evaluate.stain.stage import compare_stains
from histotl.wsi.pyramid import write_pyramid

PATIENTS, SIDE = 5, 3


@pytest.fixture(scope="module")
def slides(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides of five patients of each of the two large batches of EBHI, whose names begin with GT and GTXC."""
    table = pd.read_csv(real_data / "ebhi" / "manifest.csv", dtype=str)
    table["site"] = table["patient"].str.extract(r"^([A-Za-z]+)", expand=False).str.upper()
    folder, lines = tmp_path_factory.mktemp("ebhi_slides"), ["slide_id,path,patient,site"]
    for site in ("GT", "GTXC"):
        found = table[table["site"] == site].groupby("patient")["path"].apply(list)
        for patient, paths in found[found.map(len) >= SIDE * SIDE].head(PATIENTS).items():
            picture = np.full((SIDE * 224 + 240, SIDE * 224 + 240, 3), 243, dtype=np.uint8)
            for i, path in enumerate(paths[: SIDE * SIDE]):
                y, x = 120 + i // SIDE * 224, 120 + i % SIDE * 224
                picture[y : y + 224, x : x + 224] = np.asarray(Image.open(real_data / "ebhi" / path).convert("RGB"))
            write_pyramid(folder / f"{patient}.tiff", picture, mpp=0.5)
            lines.append(f"{patient},{patient}.tiff,{patient},{site}")
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")
    return folder / "slides.csv"


def test_normalisation_brings_real_slides_together(
    slides: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    config = StainConfig(tiles=8, jitter=(0.05, 0.2), draws=1, sites=str(slides), bootstrap=500)
    evidence = compare_stains(slides, tmp_path, config=config).evidence
    assert len(evidence.slides) == 2 * PATIENTS
    for found in evidence.spreads:
        change = found.spreads["delta_e"]
        record_property(f"colour spread, {found.method}", (change.before.value, change.after.value))
        assert change.after.value < change.before.value
    for probe in evidence.probes:
        assert probe.change is not None
        record_property(f"site AUC, {probe.method or 'none'}", probe.change.after.value)
    little, much = evidence.sturdiness
    assert 1 > little.centred.value > much.centred.value > 0


@pytest.mark.parametrize("method", ["macenko", "vahadane"])
def test_nothing_of_a_dark_photograph_turns_green(method: str, real_data: Path) -> None:
    """Residuals that stayed as they were while the stains shrank made half of a photograph green."""
    files = sorted((real_data / "ebhi").glob("*/*.jpg"))[::42]
    normalizer, grown = create("stain", method), []
    for path in files:
        tile = torch.from_numpy(np.array(Image.open(path).convert("RGB")))[None]
        grown.append(green_share(normalizer.fit(tile)(tile)) - green_share(tile))
    assert len(grown) >= 30
    assert max(grown) < 0.01
    assert np.mean(grown) <= 0


def green_share(tiles: torch.Tensor) -> float:
    red, green, blue = tiles.int().unbind(-1)
    return float(((green > red + 12) & (green > blue + 12)).float().mean())
