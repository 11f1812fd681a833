"""The quick ways of the tissue finder give what their plain definitions give."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from histotl.wsi.tissue._areas import Areas, touching
from histotl.wsi.tissue._light import _FINE, _is_dark, _is_grey, _is_inked

Mask = npt.NDArray[np.bool_]
Density = npt.NDArray[np.int16]
EIGHT = np.ones((3, 3), bool)
PAIRS = hnp.array_shapes(min_dims=2, max_dims=2, max_side=14).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)
DENSITIES = hnp.arrays(np.int16, (3, 5, 7), elements=st.integers(-300, int(2.4 * _FINE)))


def holding(mask: Mask, seed: Mask, labels: npt.NDArray[np.int32]) -> Mask:
    result: Mask = mask & np.isin(labels, labels[seed & mask])
    return result


@settings(deadline=None)
@given(PAIRS)
def test_parts_that_hold_a_seed(pair: tuple[Mask, Mask]) -> None:
    mask, seed = pair
    labels, _ = ndimage.label(mask, EIGHT)
    np.testing.assert_array_equal(touching(mask, seed), holding(mask, seed, labels))


@settings(deadline=None)
@given(PAIRS)
def test_parts_that_hold_a_seed_where_neighbouring_cells_are_connected(pair: tuple[Mask, Mask]) -> None:
    mask, seed = pair
    height, width = mask.shape
    even = np.pad(mask, ((0, height % 2), (0, width % 2)))
    cells = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).any((1, 3))
    labels, _ = ndimage.label(cells, EIGHT)
    labels = labels.repeat(2, 0).repeat(2, 1)[:height, :width]
    areas = Areas(mask, in_cells=True)
    np.testing.assert_array_equal(areas.only(areas.that_hold(seed & mask)), holding(mask, seed, labels))


@settings(deadline=None)
@given(DENSITIES)
def test_grey_is_dense_and_has_less_than_a_tenth_of_it_as_colour(densities: Density) -> None:
    exact = densities.astype(np.int64)
    least, spread = exact.min(0), np.ptp(exact, 0)
    found = _is_grey(spread.astype(np.int16), densities.min(0))
    np.testing.assert_array_equal(found, (least > 0.2 * _FINE) & (10 * spread < least))


@settings(deadline=None)
@given(DENSITIES)
def test_ink_by_its_definition(densities: Density) -> None:
    red, green, blue = densities
    r, g, b = densities.astype(np.float32)
    weaker = np.minimum(r, b)
    is_green = (weaker > np.float32(0.12 * _FINE)) & (g < np.float32(0.7) * weaker)
    is_blue = (r > np.float32(0.35 * _FINE)) & (r > np.float32(1.15) * g) & (b < np.float32(0.4) * r)
    over = (r > np.float32(0.35 * _FINE)) & (r > np.float32(1.3) * g) & (b >= np.float32(0.4) * r)
    np.testing.assert_array_equal(_is_inked(red, green, blue, np.minimum(red, blue)), is_green | is_blue | over)


@settings(deadline=None)
@given(hnp.arrays(np.uint8, (3, 4, 5)))
def test_dark_is_what_no_channel_lights(planes: npt.NDArray[np.uint8]) -> None:
    found = np.broadcast_to(_is_dark(list(planes)), planes.shape[1:])
    np.testing.assert_array_equal(found, planes.max(0) < 40)
