"""Where tiles lie: positions as numbers, the lattice that they were cut on, neighbours and regions.

Everything comes from level-0 coordinates, never from the place of a tile in a list. A bag may join several slides,
whose coordinates have nothing to do with each other: a third column then says which slide a tile is of.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import nn

from histotl.core.errors import UsageError
from histotl.learn.segments import owners

WAVES = tuple(2.0**i for i in range(10, 18))
"""Wavelengths of positions in level-0 pixels: from a few tiles to a whole slide."""


def need_coords(name: str, coords: torch.Tensor | None) -> torch.Tensor:
    """The coordinates, or an error that names the aggregator.

    Raises:
        UsageError: There are none: the bags are made of patch images.
    """
    if coords is None:
        fact = f"aggregator {name!r} needs the place of every tile, and these features have no coordinates"
        raise UsageError(fact, hint="train on features of slides, or choose another aggregator, such as abmil")
    return coords


def slides_of(coords: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """The slide of each tile.

    Args:
        coords: int64 (N, 2) level-0 corners, where each bag is of one slide; or (N, 3), whose third column tells the
            slides of a bag from each other.
        offsets: int64 (B + 1,) of the bags.

    Returns:
        int64 (N,) on the CPU: numbers from 0 without a gap; those of a bag follow on those of the bag before.
    """
    bags = owners(offsets.cpu())
    if coords.shape[1] == 2:
        return bags
    number = coords[:, 2].cpu()
    both = bags * (int(number.max()) + 1) + number
    return torch.searchsorted(both.unique(), both)  # type: ignore[no-untyped-call]


class Position(nn.Module):
    """Sines and cosines of a tile's place relative to the middle of its slide's tiles, made a vector by one matrix.

    Args:
        width: Of the vector.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4 * len(WAVES), width, bias=False)

    def forward(self, coords: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """int64 (N, 2) or (N, 3), see :func:`slides_of`, into float (N, width)."""
        place, slide = coords[:, :2].double(), slides_of(coords, offsets)
        count, slide = torch.bincount(slide).to(place), slide.to(coords.device)
        # Sums of whole numbers are exact, in any order.
        middle = place.new_zeros(len(count), 2).index_add_(0, slide, place) / count[:, None]
        place = place - middle[slide]
        angles = (place[:, :, None] * (2 * math.pi / torch.tensor(WAVES, device=coords.device).double())).flatten(1)
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        return self.linear(waves.to(self.linear.weight.dtype))  # type: ignore[no-any-return]


def lattice(coords: torch.Tensor, slide: torch.Tensor) -> torch.Tensor:
    """Column and row of every tile on the lattice of its slide, counted from its left and upper edge.

    The step of a lattice is found from the gaps between the tiles' columns and rows. Tiles may be missing, and steps
    may be uneven by rounding; what lies between lattice points goes to the nearest.

    Args:
        coords: int64 (N, 2) level-0 corners; further columns do not count.
        slide: int64 (N,) of :func:`slides_of`.

    Returns:
        int64 (N, 2) on the CPU.
    """
    places, cells = coords[:, :2].cpu(), torch.empty((len(coords), 2), dtype=torch.int64)
    for rows in torch.split(slide.argsort(stable=True), torch.bincount(slide).tolist()):
        part = places[rows]
        corner = part - part.min(dim=0).values
        cells[rows] = (corner.double() / _step(corner)).round().long()
    return cells


def neighbour_pairs(cells: torch.Tensor, slide: torch.Tensor, shift: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Pairs of tiles of the same slide that lie a given shift apart.

    Args:
        cells: From :func:`lattice`.
        slide: int64 (N,) of :func:`slides_of`.
        shift: Columns and rows from the first to the second of a pair.

    Returns:
        int64 (p,) first and (p,) second rows, in the order of the first.
    """
    reach = max(abs(shift[0]), abs(shift[1])) + 1
    across, down = (cells.max(dim=0).values + 2 * reach).tolist()

    def keys(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (slide * across + x + reach) * down + y + reach  # type: ignore[no-any-return]

    ranked, order = keys(cells[:, 0], cells[:, 1]).sort(stable=True)
    wanted = keys(cells[:, 0] + shift[0], cells[:, 1] + shift[1])
    low, high = torch.searchsorted(ranked, wanted), torch.searchsorted(ranked, wanted, right=True)
    count = high - low
    first = torch.arange(len(cells)).repeat_interleave(count)
    within = torch.arange(len(first)) - (count.cumsum(0) - count).repeat_interleave(count)
    return first, order[low.repeat_interleave(count) + within]


class Neighbours:
    """The eight neighbours of every tile.

    Args:
        coords: int64 (N, 2) level-0 corners; or (N, 3), see :func:`slides_of`.
        offsets: int64 (B + 1,).
    """

    def __init__(self, coords: torch.Tensor, offsets: torch.Tensor) -> None:
        slide = slides_of(coords, offsets)
        cells = lattice(coords, slide)
        shifts = [(x, y) for x, y in itertools.product((-1, 0, 1), repeat=2) if (x, y) != (0, 0)]
        pairs = [neighbour_pairs(cells, slide, shift) for shift in shifts]
        first, second = (torch.cat([pair[i] for pair in pairs]) for i in range(2))
        order = first.argsort(stable=True)
        count = torch.bincount(first, minlength=len(coords))
        start = torch.cat([count.new_zeros(1), count.cumsum(0)[:-1]])
        self._second, self._start = second[order].to(coords.device), start.to(coords.device)
        self.count = count.to(coords.device)

    def mean(self, h: torch.Tensor) -> torch.Tensor:
        """Mean of the neighbours' vectors, 0 where a tile has none: (N, d) into (N, d)."""
        total: torch.Tensor = _NeighbourSum.apply(h, self._second, self._start)
        return total / self.count.clamp(min=1).to(h)[:, None]


def regions(coords: torch.Tensor, offsets: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gather tiles into square regions of ``side`` x ``side`` lattice steps, each of one slide.

    Returns:
        int64 (N,): the tiles, region after region; int64 (R + 1,): offsets of the regions; int64 (B + 1,): offsets of
        the bags in regions.
    """
    slide = slides_of(coords, offsets)
    cells = lattice(coords, slide).div(side, rounding_mode="floor")
    down, across = int(cells[:, 1].max()) + 1, int(cells[:, 0].max()) + 1
    keys, order = ((slide * across + cells[:, 0]) * down + cells[:, 1]).sort(stable=True)
    names, count = torch.unique_consecutive(keys, return_counts=True)
    bag_of_slide = torch.empty(int(slide.max()) + 1, dtype=torch.int64).scatter_(0, slide, owners(offsets.cpu()))
    per_bag = torch.bincount(bag_of_slide[names.div(across * down, rounding_mode="floor")], minlength=len(offsets) - 1)
    return order.to(coords.device), _offsets(count), _offsets(per_bag)


def _offsets(count: torch.Tensor) -> torch.Tensor:
    return torch.cat([count.new_zeros(1), count.cumsum(0)])


def _step(corner: torch.Tensor) -> float:
    """Mean gap of neighbouring columns and rows in level-0 pixels; 1 where there is one column and one row."""
    gaps = torch.cat([torch.diff(torch.unique(corner[:, axis])) for axis in range(2)])
    if not len(gaps):
        return 1.0
    return float(gaps.sum() / (gaps / gaps.min()).round().sum())


class _NeighbourSum(torch.autograd.Function):
    """Sum over neighbours. Being neighbours is mutual, so the backward pass is the same sum."""

    @staticmethod
    def forward(ctx: Any, h: torch.Tensor, second: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(second, start)
        return _gathered(h, second, start)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _gathered(grad, *ctx.saved_tensors), None, None


def _gathered(h: torch.Tensor, second: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    return nn.functional.embedding_bag(second, h.contiguous(), start, mode="sum")
