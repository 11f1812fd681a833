"""Quality figures in the flow of a run: what measures them, and what the file says of them."""

from __future__ import annotations

import torch

from histotl.embed._compute import Change
from histotl.image.measures import Measures
from histotl.store.extras import Extra, QualitySpec


def figures_of(measures: Measures, mpp: float) -> Change | None:
    """What measures tiles of a pixel size (µm; NaN where nobody knows it); None where nothing is to be measured."""
    if not measures.measures:
        return None

    def measure(tiles: torch.Tensor) -> torch.Tensor:
        return measures(tiles, mpp)

    return measure


def quality_extras(measures: Measures) -> tuple[Extra, ...]:
    """What a file holds of these measures."""
    return (QualitySpec(columns=measures.columns, measures=measures.specs),) if measures.measures else ()
