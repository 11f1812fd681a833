"""The gland's own coordinates, and what its wall is made of."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histotl.paint.epithelium import paint_gland
from histotl.paint.glands import GLANDS, Gland
from histotl.paint.nuclei import NucleusBox
from histotl.paint.values import blank_canvas


@given(
    angle=st.floats(-7, 7),
    half_length=st.floats(0, 150),
    radius=st.floats(20, 90),
    bend=st.floats(-0.9, 0.9),
    turn=st.floats(0.001, 0.999),
    share=st.floats(0.1, 1.2),
)
def test_place_is_the_inverse_of_local(angle, half_length, radius, bend, turn, share):
    gland = Gland(tissue="normal", x=300, y=250, angle=angle, half_length=half_length, radius=radius, bend=bend)
    xy, _ = gland.place(np.array([turn]), np.array([share * radius]))
    distance, back = gland.local(xy[:, 0].astype(np.float32), xy[:, 1].astype(np.float32))
    assert distance[0] == pytest.approx(share * radius, abs=0.01)
    assert back[0] == pytest.approx(turn, abs=1e-3)
    assert np.all(np.abs(xy[0] - (300, 250)) <= gland.reach_px)


@pytest.fixture(scope="module")
def walls():
    """Densities and mask of one round gland of each kind, on an empty slide."""
    painted = {}
    for name in GLANDS:
        rng = np.random.default_rng(8)
        canvas = blank_canvas((300, 300), 0.5)
        gland = Gland(tissue=name, x=150, y=150, angle=0.4, half_length=0, radius=75, bend=0)
        paint_gland(canvas, gland, NucleusBox(rng, 0.5), rng)
        painted[name] = canvas
    return painted


def test_lumen_is_empty_and_nuclei_are_at_the_base_of_normal_glands(walls):
    canvas = walls["normal"]
    y, x = np.mgrid[0:300, 0:300]
    distance = np.hypot(x - 150, y - 150)
    nuclei = canvas.first > 0.6
    assert canvas.first[distance < 5].max() < 0.1
    assert np.median(distance[nuclei]) > 0.75 * 75
    assert not nuclei[distance > 85].any()


def test_adenomas_have_more_and_higher_nuclei_and_less_mucin(walls):
    def nuclei(name):
        return (walls[name].first > 0.6).sum() / walls[name].taken.sum()

    def mucin(name):
        pale = (walls[name].first > 0.03) & (walls[name].first < 0.13) & walls[name].taken
        return pale.sum() / walls[name].taken.sum()

    assert nuclei("adenoma_high") > nuclei("adenoma_low") > 1.2 * nuclei("normal")
    assert mucin("normal") > 2 * mucin("adenoma_low")


def test_a_later_gland_leaves_an_earlier_one_alone():
    rng = np.random.default_rng(1)
    canvas = blank_canvas((300, 400), 0.5)
    box = NucleusBox(rng, 0.5)
    paint_gland(canvas, Gland(tissue="normal", x=150, y=150, angle=0, half_length=0, radius=70, bend=0), box, rng)
    before, own = canvas.first.copy(), canvas.taken.copy()
    paint_gland(canvas, Gland(tissue="adenoma_high", x=230, y=150, angle=0, half_length=0, radius=70, bend=0), box, rng)
    assert np.array_equal(canvas.first[own], before[own])
    assert canvas.taken.sum() > 1.3 * own.sum()


def test_a_gland_over_the_slide_edge_is_cut():
    rng = np.random.default_rng(1)
    canvas = blank_canvas((120, 120), 0.5)
    paint_gland(
        canvas,
        Gland(tissue="serrated", x=5, y=60, angle=1, half_length=30, radius=70, bend=0.2),
        NucleusBox(rng, 0.5),
        rng,
    )
    assert canvas.taken[:, 0].any()
    assert np.isfinite(canvas.first).all()
