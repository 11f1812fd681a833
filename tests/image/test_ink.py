"""Felt pen: it is found by colour, tissue is not taken for it, and no stain is estimated from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from histotl.core.errors import NoTissueError
from histotl.core.registry import create
from histotl.image._ink import under_ink

INKS = {"blue": (0.12, 0.30, 0.80), "green": (0.15, 0.70, 0.35), "red": (0.9, 0.2, 0.25), "black": (0.1, 0.1, 0.1)}
"""Share of each channel's light that passes."""
STROKE = slice(40, 80)


def drawn(tiles: torch.Tensor, ink: str) -> torch.Tensor:
    """The tiles with a vertical stroke over each."""
    light = tiles.float()
    light[:, :, STROKE] *= torch.tensor(INKS[ink])
    return light.round().to(torch.uint8)


@pytest.mark.parametrize("ink", INKS)
def test_strokes_are_found_and_tissue_is_not_taken_for_ink(tissue: torch.Tensor, ink: str) -> None:
    assert not under_ink(tissue).any()
    found = under_ink(drawn(tissue, ink)).float().mean((0, 1))
    assert found[STROKE].mean() > 0.97
    assert found[: STROKE.start - 8].max() == 0
    assert found[STROKE.stop + 8 :].max() == 0


@pytest.mark.parametrize("shape", [(1, 1), (5, 13), (224, 30)])
def test_tiles_of_any_shape(shape: tuple[int, int]) -> None:
    light = torch.tensor([30, 75, 200], dtype=torch.uint8)
    assert under_ink(light.expand(2, *shape, 3)).all()
    assert under_ink(torch.full((2, *shape, 3), 255, dtype=torch.uint8)).shape == (2, *shape)


@pytest.mark.parametrize("ink", INKS)
@pytest.mark.parametrize("method", ["macenko", "vahadane"])
def test_stain_vectors_of_a_slide_with_pen_are_those_without(tissue: torch.Tensor, method: str, ink: str) -> None:
    clean = np.array(create("stain", method).fit(tissue).state["stains"])  # type: ignore[attr-defined]
    found = np.array(create("stain", method).fit(drawn(tissue, ink)).state["stains"])  # type: ignore[attr-defined]
    angles = np.degrees(np.arccos(np.clip((clean * found).sum(1), -1, 1)))
    assert angles.max() < 2


@pytest.mark.parametrize("ink", INKS)
@pytest.mark.parametrize("method", ["reinhard", "histogram"])
def test_colours_of_a_slide_with_pen_become_those_without(tissue: torch.Tensor, method: str, ink: str) -> None:
    clean, inked = (create("stain", method).fit(tiles)(tissue) for tiles in (tissue, drawn(tissue, ink)))  # type: ignore[attr-defined]
    assert (clean.float() - inked.float()).abs().mean() < 2


def test_ink_alone_is_no_stain() -> None:
    light = torch.tensor([30, 75, 200], dtype=torch.uint8).expand(2, 64, 64, 3)
    with pytest.raises(NoTissueError, match="0 of"):
        create("stain", "macenko").fit(light)  # type: ignore[attr-defined]
