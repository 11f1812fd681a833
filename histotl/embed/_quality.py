"""Quality figures in the flow of a run: what measures them, and what the file says of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from histotl.core.condition import Condition
from histotl.core.errors import NoTissueError, StoreError
from histotl.core.values import TileGrid
from histotl.embed._compute import Change
from histotl.embed.summary import SlideQuality
from histotl.image.measures import DOUBTFUL, Measures
from histotl.store.embeddings import open_embeddings
from histotl.store.extras import Extra, QualitySpec
from histotl.wsi.slide import Slide
from histotl.wsi.tiles import TileReader

_TOGETHER = 64
"""Tiles that are read together for --drop."""


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


def drop_condition(text: str, measures: Measures) -> Condition | None:
    """The tiles that are to be left out; None for none.

    Raises:
        UsageError: It cannot be read, or names what is not measured.
    """
    if not text:
        return None
    condition = Condition.parse(text)
    condition.check(measures.columns)
    return condition


def without_dropped(slide: Slide, grid: TileGrid, measures: Measures, drop: Condition) -> TileGrid:
    """The tiles of a grid that do not satisfy a condition; all are read for it.

    Raises:
        NoTissueError: None is left.
        SlideReadError: A region cannot be read.
    """
    columns = [measures.columns.index(name) for name in drop.columns]
    found = []
    with TileReader(slide, grid) as reader:
        for start in range(0, len(grid), _TOGETHER):
            tiles = torch.from_numpy(reader.read(slice(start, min(start + _TOGETHER, len(grid)))))
            found.append(measures(tiles, grid.spec.mpp)[:, columns].numpy())
    values = dict(zip(drop.columns, np.concatenate(found).T, strict=True))
    kept = ~drop.holds(values)
    if not kept.any():
        fact = f"{slide.info.slide_id}: all of {len(grid)} tiles satisfy --drop {drop.text!r}"
        raise NoTissueError(fact, hint="loosen the condition, or embed without it and use train --keep")
    return replace(grid, coords_l0=grid.coords_l0[kept], tissue_fraction=grid.tissue_fraction[kept])


def slide_quality(files: Iterable[Path]) -> tuple[SlideQuality, ...]:
    """Medians and shares of doubtful tiles in the files that have figures; damaged ones are left to ``check``."""
    found = []
    for path in files:
        try:
            with open_embeddings(path) as file:
                quality, name, n = file.quality, file.slide_id, file.n
        except StoreError:
            continue
        if quality is None or not n:
            continue
        values = {column: quality.column(column) for column in quality.spec.columns}
        doubtful = {name: Condition.parse(text) for name, text in DOUBTFUL.items() if name in values}
        found.append(
            SlideQuality(
                slide_id=name,
                n_tiles=n,
                medians={c: None if np.isnan(v).all() else float(np.nanmedian(v)) for c, v in values.items()},
                doubtful={c: float(condition.holds(values).mean()) for c, condition in doubtful.items()},
            )
        )
    return tuple(found)
