"""What is done to clean tiles, and which figure has to find it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from benchmarks.quality import degrade
from benchmarks.quality.degrade import INKS, Tile
from histotl.core.condition import Condition
from histotl.image.measures import DOUBTFUL, Measures

Figures = Mapping[str, NDArray[np.float32]]
Change = Callable[[Tile, np.random.Generator, float], Tile]

TISSUE: Final = 0.5
"""Least share of a clean tile that is no glass, so that there is something to blur and to fold."""

_GLASS_LEVEL = 209


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing done to tiles.

    Args:
        name: What, with how much.
        change: Does it.
        columns: Figures that must find it.
        sign: -1 where the figure becomes smaller.
        goal: Least AUROC; None where none was set.
    """

    name: str
    change: Change
    columns: tuple[str, ...]
    sign: int = 1
    goal: float | None = 0.95


FOCUS: Final = ("focus_laplacian", "focus_reblur")
CASES: Final = (
    *(Case(name=f"blur, sigma {s} µm", change=partial(degrade.blur, sigma_um=s), columns=FOCUS, sign=-1)
      for s in (1.0, 1.5, 2.0, 4.0)),
    *(Case(name=f"pen, {ink}", change=partial(degrade.pen, ink=ink), columns=("pen", f"pen_{ink}")) for ink in INKS),
    Case(name="fold, 20 µm", change=partial(degrade.fold, width_um=20.0), columns=("fold",), goal=None),
    Case(name="fold, 30 µm", change=degrade.fold, columns=("fold",)),
    *(Case(name=f"bubble, radius {r:.0f} µm", change=partial(degrade.bubble, radius_um=r), columns=("bubble",))
      for r in (60.0, 120.0, 400.0)),
    Case(name="glass, half", change=degrade.glass, columns=("blank",), goal=None),
    Case(name="red cells, 30 %", change=degrade.blood, columns=("blood",), goal=None),
    Case(name="JPEG once more, quality 25", change=degrade.jpeg, columns=("blockiness",), goal=None),
)  # fmt: skip


def has_tissue(tile: Tile) -> bool:
    """Whether enough of a tile is no glass."""
    return bool((tile.min(axis=2) < _GLASS_LEVEL).mean() >= TISSUE)


def figures(measures: Measures, tiles: Sequence[Tile], mpp: float) -> dict[str, NDArray[np.float32]]:
    """Column -> its figure for each tile; tiles may differ in size."""
    batches = [tiles] if len({tile.shape for tile in tiles}) == 1 else [[tile] for tile in tiles]
    rows = [measures(torch.from_numpy(np.stack(batch)), mpp).numpy() for batch in batches]
    return dict(zip(measures.columns, np.concatenate(rows).T, strict=True))


def scores(
    case: Case, measures: Measures, tiles: Sequence[Tile], mpp: float, clean: Figures, seed: int = 0
) -> Iterator[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    """For each figure of a case: its name, and what it says of the clean and of the changed tiles, higher is worse.

    ``clean`` are the figures of the tiles as they are. One that cannot be measured counts as the worst: nobody would
    take such a tile for a good one.
    """
    rng = np.random.default_rng(seed)
    changed = figures(measures, [case.change(tile, rng, mpp) for tile in tiles], mpp)
    for column in case.columns:
        before, after = (
            np.nan_to_num(case.sign * found[column].astype(np.float64), nan=1e9) for found in (clean, changed)
        )
        yield column, before, after


def beyond(
    case: Case, column: str, measures: Measures, tiles: Sequence[Tile], mpp: float, clean: Figures, seed: int = 0
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of the clean and which of the changed tiles summaries call doubtful by a column."""
    rng, line = np.random.default_rng(seed), Condition.parse(DOUBTFUL[column])
    changed = figures(measures, [case.change(tile, rng, mpp) for tile in tiles], mpp)
    return line.holds({column: clean[column]}), line.holds({column: changed[column]})


def auroc(clean: NDArray[np.float64], changed: NDArray[np.float64]) -> float:
    """Share of pairs of a clean and a changed tile in which the changed one has the higher figure; ties count half."""
    ranks = rankdata(np.concatenate([clean, changed]))
    n, m = len(clean), len(changed)
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def interval(
    clean: NDArray[np.float64], changed: NDArray[np.float64], *, resamples: int = 500, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the AUROC by bootstrap; a tile and what was made of it are drawn together."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(clean), (resamples, len(clean)))
    low, high = np.percentile([auroc(clean[rows], changed[rows]) for rows in drawn], [2.5, 97.5])
    return float(low), float(high)
