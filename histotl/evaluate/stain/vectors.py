"""Stain vectors of a slide: what was found, as numbers and as colours to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from histotl.core.errors import SlideError
from histotl.image._od import IO
from histotl.image.stain.base import StainNormalizer

SWATCH_CONCENTRATION = 1.0
"""Concentration at which a stain's colour is shown: the same for all, so that swatches differ by colour alone."""


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """The two stains of a sample, as a fitted normaliser states them.

    Args:
        stains: Unit vectors of R, G, B optical densities, haematoxylin first.
        strengths: Their concentrations.
    """

    stains: tuple[tuple[float, ...], ...]
    strengths: tuple[float, ...]

    @property
    def angle_deg(self) -> float:
        """Angle between the two stains."""
        one, other = (np.asarray(stain) for stain in self.stains)
        return math.degrees(math.acos(max(-1.0, min(1.0, float(one @ other)))))

    @property
    def swatches(self) -> tuple[str, ...]:
        """The stains' colours for a page, such as ``#7a5fb0``."""
        return tuple(swatch(stain) for stain in self.stains)


def swatch(stain: tuple[float, ...]) -> str:
    """Colour of light that went through one stain."""
    light = IO * np.exp(-np.asarray(stain) * SWATCH_CONCENTRATION) - 1
    return "#" + "".join(f"{level:02x}" for level in np.clip(np.rint(light), 0, 255).astype(int))


def find_vectors(normalizer: StainNormalizer, tiles: torch.Tensor) -> Vectors | str:
    """Estimate the stains of tiles.

    Args:
        normalizer: A method that finds stain vectors.
        tiles: uint8 RGB (n, h, w, 3).

    Returns:
        The vectors, or in words why there are none.
    """
    try:
        return vectors_of(normalizer.fit(tiles).state)
    except SlideError as error:
        return error.message


def vectors_of(state: Mapping[str, object]) -> Vectors | str:
    """The vectors that a fitted state names; in words when it names none, as of methods that look at colours only."""
    stains, strengths = np.asarray(state.get("stains", ())), np.asarray(state.get("strengths", ()))
    if stains.shape != (2, 3) or strengths.shape != (2,):
        return "this method finds no stain vectors"
    unit = stains / np.linalg.norm(stains, axis=1, keepdims=True)
    return Vectors(stains=tuple(map(tuple, unit.tolist())), strengths=tuple(strengths.tolist()))
