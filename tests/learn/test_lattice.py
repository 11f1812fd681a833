from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from histotl.learn.lattice import Neighbours, lattice, neighbour_pairs, regions, slides_of

CELLS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=25, unique=True)


def corners(cells: list[tuple[int, int]], step: float) -> torch.Tensor:
    return (torch.tensor(cells).double() * step).round().long() + torch.tensor([513, 90])


@given(cells=CELLS, step=st.sampled_from([1.0, 224.0, 443.25, 447.6]))
@settings(max_examples=60, deadline=None)
def test_cells_come_back_from_level_0_corners(cells: list[tuple[int, int]], step: float) -> None:
    # A tile or two in the corner show the step; fewer may fit a coarser lattice as well.
    cells = [*{*cells, (0, 0), (1, 0), (0, 1)}]
    one = torch.zeros(len(cells), dtype=torch.int64)
    assert lattice(corners(cells, step), one).tolist() == [list(cell) for cell in cells]


def test_a_long_row_with_uneven_steps() -> None:
    cells = [(i, 0) for i in range(900) if i % 7]
    found = lattice(corners(cells, 443.25), torch.zeros(len(cells), dtype=torch.int64))
    assert found[:, 0].tolist() == [i - 1 for i, _ in cells]


@given(first=CELLS, second=CELLS)
@settings(max_examples=30, deadline=None)
def test_neighbours_by_brute_force(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    sizes = [len(first), len(second)]
    cells = torch.tensor([*first, *second])
    owner = torch.tensor([0, 1]).repeat_interleave(torch.tensor(sizes))
    for shift in ((1, 0), (-1, 1), (2, -3)):
        pairs = torch.stack(neighbour_pairs(cells, owner, shift), dim=1).tolist()
        apart = (cells[None] - cells[:, None]) == torch.tensor(shift)
        assert pairs == torch.nonzero(apart.all(2) & (owner[:, None] == owner)).tolist()


@given(cells=CELLS)
@settings(max_examples=30, deadline=None)
def test_mean_of_neighbours_and_its_gradient(cells: list[tuple[int, int]]) -> None:
    cells = [*{*cells, (0, 0), (1, 0)}]
    place, offsets = torch.tensor(cells), torch.tensor([0, len(cells)])
    near = Neighbours(corners(cells, 300.0), offsets)
    gap = (place[None] - place[:, None]).abs().amax(2)
    matrix = (gap == 1).double()
    assert near.count.tolist() == matrix.sum(1).tolist()
    matrix = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    h = torch.randn(len(cells), 3).double().requires_grad_()
    torch.testing.assert_close(near.mean(h), matrix @ h)
    (ours,) = torch.autograd.grad(near.mean(h).square().sum(), h)
    torch.testing.assert_close(ours, torch.autograd.grad((matrix @ h).square().sum(), h)[0])


@given(first=CELLS, second=CELLS, side=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_regions_are_squares_of_one_bag(first: list[tuple[int, int]], second: list[tuple[int, int]], side: int) -> None:
    first, second = [*{*first, (0, 0), (1, 0)}], [*{*second, (0, 0), (0, 1)}]
    coords = torch.cat([corners(first, 100.0), corners(second, 100.0)])
    offsets = torch.tensor([0, len(first), len(coords)])
    order, inner, outer = regions(coords, offsets, side)
    assert sorted(order.tolist()) == list(range(len(coords)))
    place = [(b, x // side, y // side) for b, bag in enumerate((first, second)) for x, y in bag]
    found = [{place[i] for i in part} for part in order.tensor_split(inner[1:-1])]
    assert all(len(names) == 1 for names in found), "a region is one square"
    assert len({next(iter(names)) for names in found}) == len(found), "a square is one region"
    assert outer.tolist() == [0, sum(b == 0 for b, _, _ in set(place)), len(set(place))]


def test_slides_are_told_apart_within_bags_in_any_order() -> None:
    offsets = torch.tensor([0, 4, 6])
    coords = torch.zeros(6, 2, dtype=torch.int64)
    assert slides_of(coords, offsets).tolist() == [0, 0, 0, 0, 1, 1]
    numbers = torch.tensor([[7], [3], [7], [7], [3], [3]])
    assert slides_of(torch.cat([coords, numbers], dim=1), offsets).tolist() == [1, 0, 1, 1, 2, 2]


def test_regions_of_a_bag_of_two_slides_are_of_one_slide_each() -> None:
    """Both slides have tiles at the same places, with steps of their own."""
    first, second = corners([(0, 0), (1, 0), (2, 0)], 100.0), corners([(0, 0), (1, 0), (0, 1)], 224.0)
    numbers = torch.tensor([[0]] * 3 + [[1]] * 3 + [[1]] * 3)
    coords = torch.cat([torch.cat([first, second, first]), numbers], dim=1)
    order, inner, outer = regions(coords, torch.tensor([0, 6, 9]), side=2)
    parts = [sorted(part.tolist()) for part in order.tensor_split(inner[1:-1])]
    assert parts == [[0, 1], [2], [3, 4, 5], [6, 7], [8]]
    assert outer.tolist() == [0, 3, 5]
