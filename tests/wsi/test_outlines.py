"""Outlines follow the mask's own border, have its pieces and holes, and never cross."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from histotl.wsi._contours import midway_rings, trace
from histotl.wsi.mask import Polygon, TissueMask, clean, outlines

Mask = npt.NDArray[np.bool_]
Ring = npt.NDArray[np.float64]
MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14))
EIGHT = np.ones((3, 3), bool)
TOLERANCE_PX = 0.35


def blobs(seed: int, sigma: float = 2.0, side: int = 60) -> Mask:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(side, side + 9)), sigma)
    mask: Mask = field > 0
    return mask


def rings_of(polygons: tuple[Polygon, ...]) -> list[Ring]:
    return [ring for polygon in polygons for ring in (polygon.exterior, *polygon.holes)]


def edge_middles(mask: Mask) -> Ring:
    """Middles of all pixel edges between tissue and background, (n, 2) as x and y."""
    padded = np.pad(mask, 1)
    rows, columns = np.nonzero(padded[:, 1:] != padded[:, :-1])
    upright = np.stack([columns, rows - 0.5], axis=1)
    rows, columns = np.nonzero(padded[1:] != padded[:-1])
    level = np.stack([columns - 0.5, rows], axis=1)
    return np.concatenate([upright, level]).astype(np.float64)


def distance(points: Ring, begin: Ring, end: Ring) -> npt.NDArray[np.float64]:
    """From every point to the nearest of some segments."""
    along = end - begin
    part = ((points[:, None] - begin) * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-12)
    nearest = begin + np.clip(part, 0, 1)[..., None] * along
    result: npt.NDArray[np.float64] = np.sqrt(((points[:, None] - nearest) ** 2).sum(-1)).min(1)
    return result


def crossings(rings: list[Ring]) -> int:
    """Pairs of segments that meet although they are no neighbours on a ring; 0 for valid outlines."""
    begin, end = np.concatenate([ring[:-1] for ring in rings]), np.concatenate([ring[1:] for ring in rings])
    label = np.repeat(np.arange(len(rings)), [len(ring) - 1 for ring in rings])
    place = np.concatenate([np.arange(len(ring) - 1) for ring in rings])
    length = np.array([len(ring) - 1 for ring in rings])[label]

    def side(p: Ring, q: Ring, r: Ring) -> npt.NDArray[np.float64]:
        turned: npt.NDArray[np.float64] = (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) - (
            q[..., 1] - p[..., 1]
        ) * (r[..., 0] - p[..., 0])
        return turned

    a, b, c, d = begin[:, None], end[:, None], begin[None], end[None]
    meet = (side(a, b, c) * side(a, b, d) <= 0) & (side(c, d, a) * side(c, d, b) <= 0)
    low, high = np.minimum(begin, end), np.maximum(begin, end)
    meet &= ((low[:, None] <= high[None]) & (low[None] <= high[:, None])).all(-1)
    apart = (place[:, None] - place[None]) % length[:, None]
    neighbours = (label[:, None] == label[None]) & ((apart <= 1) | (apart == length[:, None] - 1))
    return int((meet & ~neighbours).sum())


@settings(deadline=None)
@given(MASKS)
def test_outlines_stay_near_the_border_of_any_mask(mask: Mask) -> None:
    polygons = outlines(mask, (1.0, 1.0))
    if not mask.any():
        assert polygons == ()
        return
    rings = rings_of(polygons)
    middles = edge_middles(mask)
    begin, end = np.concatenate([ring[:-1] for ring in rings]), np.concatenate([ring[1:] for ring in rings])
    assert distance(middles, begin, end).max() <= TOLERANCE_PX + 1e-6, "no part of the border is left out"
    # Corners of outlines are middles of edges: half a pixel or nothing beside whole numbers.
    assert {tuple(point) for point in begin.tolist()} <= {tuple(point) for point in middles.tolist()}
    assert crossings(rings) == 0


@pytest.mark.parametrize("sigma", [0.6, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_outlines_of_tissue_like_masks_do_not_cross(seed: int, sigma: float) -> None:
    mask = blobs(seed, sigma)
    rings = rings_of(outlines(mask, (1.0, 1.0)))
    assert crossings(rings) == 0
    corners = sum(len(ring) - 1 for ring in rings)
    assert corners < 0.75 * len(edge_middles(mask)), "simplified"


def test_crossings_are_seen() -> None:
    """The test's own measure: a bow tie has one crossing, which is counted from both sides."""
    bow = np.array([[0, 0], [4, 4], [4, 0], [0, 4], [0, 0]], np.float64)
    square = np.array([[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]], np.float64)
    assert crossings([bow]) == 2
    assert crossings([square]) == 0
    assert crossings([square, square + 1]) == 4


def test_outlines_run_along_pixel_borders_not_centres() -> None:
    mask = np.zeros((20, 30), bool)
    mask[4:10, 6:17] = True
    (polygon,) = outlines(mask, (8.0, 4.0))
    assert polygon.exterior.min(0).tolist() == [6 * 8.0, 4 * 4.0]
    assert polygon.exterior.max(0).tolist() == [17 * 8.0, 10 * 4.0]
    assert polygon.holes == ()


def test_tissue_joins_over_corners_and_holes_do_not() -> None:
    mask = np.zeros((12, 12), bool)
    mask[1:4, 1:4] = mask[4:7, 4:7] = True
    assert len(outlines(mask, (1.0, 1.0))) == 1
    mask[:] = False
    mask[1:10, 1:10] = True
    mask[2:4, 2:4] = mask[4:6, 4:6] = False
    (polygon,) = outlines(mask, (1.0, 1.0))
    assert len(polygon.holes) == 2


def test_islands_in_holes_are_pieces_and_the_largest_comes_first() -> None:
    mask = np.zeros((30, 30), bool)
    mask[1:29, 1:29] = True
    mask[5:25, 5:25] = False
    mask[10:20, 10:20] = True
    mask[14, 14] = False
    big, island = outlines(mask, (1.0, 1.0))
    assert (len(big.holes), len(island.holes)) == (1, 1)
    assert island.exterior.min(0).tolist() == [10.0, 10.0]
    assert len(island.holes[0]) == 5


@settings(deadline=None)
@given(MASKS)
def test_borders_know_their_areas(mask: Mask) -> None:
    """Pixels inside each border, counted by SciPy."""
    for corners_only in (True, False):
        borders = trace(mask, corners_only=corners_only)
        outer = np.sort(borders.area_px[borders.depth % 2 == 0]).tolist()
        pieces, count = ndimage.label(mask, EIGHT)
        counted = []
        for index in range(1, count + 1):
            gaps, _ = ndimage.label(~np.pad(pieces == index, 1))
            counted.append(int((gaps != gaps[0, 0]).sum()))
        assert outer == sorted(counted)
        assert len(midway_rings(trace(mask, corners_only=False))) == len(borders)


@settings(deadline=None)
@given(MASKS, st.integers(0, 30), st.integers(0, 30))
def test_clean_is_filling_and_then_dropping(mask: Mask, area: int, hole: int) -> None:
    """Against the same in SciPy's words, nested pieces and holes included."""
    gaps, count = ndimage.label(~mask)
    filled = mask.copy()
    for index in range(1, count + 1):
        gap = gaps == index
        reaches = gap[0].any() or gap[-1].any() or gap[:, 0].any() or gap[:, -1].any()
        if not reaches and gap.sum() <= hole:
            filled |= gap
    pieces, count = ndimage.label(filled, EIGHT)
    kept = np.zeros(mask.shape, bool)
    for index in range(1, count + 1):
        piece = pieces == index
        if piece.sum() >= area:
            kept |= piece
    before = mask.copy()
    assert np.array_equal(clean(mask, min_area_px=area, max_hole_px=hole), kept)
    assert np.array_equal(mask, before), "the mask given is not changed"


def test_clean_on_nested_rings() -> None:
    """A filled hole takes the pieces in it along, and what is too small inside an open hole goes alone."""
    y, x = np.mgrid[:80, :80]
    mask = (np.maximum(abs(y - 40), abs(x - 40)) // 5) % 2 == 0
    hypothetical = clean(mask, min_area_px=0, max_hole_px=10_000)
    assert hypothetical[10:70, 10:70].all()
    alone = clean(mask, min_area_px=200, max_hole_px=0)
    assert not alone[38:43, 38:43].any()
    assert alone[40, 25:30].any()


def test_outlines_wait_until_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(mask: Mask, scale_l0: tuple[float, float]) -> tuple[Polygon, ...]:
        calls.append(scale_l0)
        return outlines(mask, scale_l0)

    monkeypatch.setattr("histotl.wsi.mask.outlines", counted)
    found = TissueMask(mask=blobs(0), scale_l0=(16.0, 16.0), area_mm2=1.0)
    assert calls == []
    assert found.polygons is found.polygons
    assert calls == [(16.0, 16.0)]
