"""Known answers and laws of the solvers on Gramians: any rank, zero gradients, one task, tasks twice."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from histotl.learn import _gramian
from histotl.learn._gramian import aligned, bargain, cagrad, imtl_g, mgda, nash, pcgrad, upgrad

Array = np.ndarray
ANY_ORDER = np.random.default_rng(0)
SOLVERS: dict[str, Callable[[Array], Array]] = {
    "mgda": mgda,
    "upgrad": upgrad,
    "imtl_g": imtl_g,
    "nash": nash,
    "aligned": aligned,
    "cagrad": lambda gramian: cagrad(gramian, 0.4),
    "pcgrad": lambda gramian: pcgrad(gramian, [np.arange(len(gramian)) for _ in gramian]),
}


@st.composite
def jacobians(draw: st.DrawFn, *, full: bool = False) -> Array:
    """Gradients (T, P) of many scales; some of low rank, with a zero row or a row twice."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tasks = draw(st.integers(1, 7))
    rank = tasks + 3 if full else draw(st.integers(1, tasks + 3))
    rows = rng.standard_normal((tasks, rank)) * 10 ** rng.uniform(-1.5, 1.5, (tasks, 1))
    if not full and tasks > 1:
        rows[0] *= draw(st.sampled_from([0.0, 1.0, 1.0, 1.0]))
        rows[-1] = draw(st.sampled_from([rows[-1], rows[-1], rows[0]]))
    return rows


def size(rows: Array) -> float:
    return float(np.square(rows).sum(axis=1).max())


@settings(deadline=None)
@given(jacobians())
def test_every_solver_answers_with_finite_weights(rows: Array) -> None:
    for name, solve in SOLVERS.items():
        found = solve(rows @ rows.T)
        assert found.shape == (len(rows),), name
        assert np.isfinite(found).all(), name


@pytest.mark.parametrize("name", SOLVERS)
def test_one_task_gets_its_plain_gradient_and_no_gradient_at_all_gives_ones(name: str) -> None:
    np.testing.assert_allclose(SOLVERS[name](np.array([[7.3]])), [1.0], rtol=1e-6)
    np.testing.assert_array_equal(SOLVERS[name](np.zeros((3, 3))), np.ones(3))


@pytest.mark.parametrize("name", SOLVERS)
def test_tasks_that_agree_get_the_length_of_their_plain_sum(name: str) -> None:
    rows = np.tile([[2.0, 1.0]], (3, 1))
    np.testing.assert_allclose(rows.T @ SOLVERS[name](rows @ rows.T), [6.0, 3.0], rtol=1e-5)


@settings(deadline=None)
@given(jacobians(full=True), st.randoms(use_true_random=False))
def test_the_order_of_tasks_does_not_matter(rows: Array, random: object) -> None:
    order = np.array(sorted(range(len(rows)), key=lambda _: random.random()))  # type: ignore[attr-defined]
    for name, solve in SOLVERS.items():
        if name != "pcgrad":
            plain, turned = solve(rows @ rows.T), solve(rows[order] @ rows[order].T)
            np.testing.assert_allclose(turned, plain[order], rtol=1e-4, atol=1e-4 * np.abs(plain).max(), err_msg=name)


@settings(deadline=None)
@given(jacobians())
def test_mgda_is_the_shortest_vector_of_the_hull(rows: Array) -> None:
    weights = mgda(rows @ rows.T) / len(rows)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    found = rows.T @ weights
    assert (rows @ found).min() >= found @ found - 1e-5 * size(rows)


@settings(deadline=None)
@given(jacobians())
def test_upgrad_makes_no_task_worse_and_is_the_projections_sum(rows: Array) -> None:
    weights = upgrad(rows @ rows.T)
    assert (rows @ (rows.T @ weights)).min() >= -1e-6 * size(rows)
    # KKT of each projection: what is added lies on constraints that hold with equality.
    if (rows @ rows.T).min() >= 0:
        np.testing.assert_allclose(weights, 1, atol=1e-8)


def test_upgrad_projects_onto_the_cone() -> None:
    rows = np.array([[1.0, 0.0], [-1.0, 1.0]])
    # (1, 0) on {d: d·(1,0) ≥ 0, d·(-1,1) ≥ 0} is (1/2, 1/2); (-1, 1) is (0, 1).
    np.testing.assert_allclose(rows.T @ upgrad(rows @ rows.T), [0.5, 1.5], atol=1e-9)


@settings(deadline=None)
@given(jacobians(full=True))
def test_imtl_g_has_equal_projections(rows: Array) -> None:
    weights = imtl_g(rows @ rows.T)
    projections = rows @ (rows.T @ weights) / np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(projections, projections.mean(), rtol=1e-5)
    assert projections.min() > 0
    assert np.abs(weights).sum() == pytest.approx(len(rows))


def test_imtl_g_of_opposite_gradients_stands_still() -> None:
    rows = np.array([[1.0, 0.0], [-4.0, 0.0]])
    np.testing.assert_allclose(rows.T @ imtl_g(rows @ rows.T), 0, atol=1e-12)


@settings(deadline=None)
@given(jacobians(full=True), st.floats(-3, 3))
def test_nash_solves_its_equation_and_knows_no_scale(rows: Array, power: float) -> None:
    gramian = rows @ rows.T
    unit = gramian / np.sqrt(np.outer(np.diag(gramian), np.diag(gramian)))
    found = bargain(gramian, ridge=0.0)
    np.testing.assert_allclose(found * (gramian @ found), 1, atol=1e-6 * np.linalg.cond(unit))
    assert found.min() > 0
    scale = np.r_[10**power, np.ones(len(rows) - 1)]
    direction = rows.T @ nash(gramian)
    scaled = rows * scale[:, None]
    other = scaled.T @ nash(scaled @ scaled.T)
    cosine = direction @ other / np.linalg.norm(direction) / np.linalg.norm(other)
    assert cosine == pytest.approx(1, abs=1e-6)


def test_nash_of_known_gramians() -> None:
    np.testing.assert_allclose(bargain(np.diag([4.0, 9.0]), ridge=0.0), [0.5, 1 / 3], rtol=1e-9)
    np.testing.assert_allclose(bargain(np.ones((2, 2)), ridge=0.0), [2**-0.5] * 2, rtol=1e-9)
    # Exactly opposite gradients have no bargain; the weights then cancel them out and training stands still.
    np.testing.assert_allclose(nash(np.array([[1.0, -1.0], [-1.0, 1.0]])), [1, 1], rtol=1e-4)
    assert nash(np.diag([1.0, 0.0]))[1] == 0


@settings(deadline=None)
@given(jacobians())
def test_aligned_makes_all_principal_lengths_equal(rows: Array) -> None:
    if not rows.any():
        return
    gramian = rows @ rows.T
    values, vectors = np.linalg.eigh(gramian)
    live = values > _gramian.RANK * values.max()
    back = np.sqrt(values[live].min()) * (vectors[:, live] / np.sqrt(values[live])) @ vectors[:, live].T
    made = np.linalg.svd(back @ rows, compute_uv=False)[: live.sum()]
    np.testing.assert_allclose(made, made[0], rtol=1e-3)
    np.testing.assert_allclose(aligned(gramian), back.sum(axis=0), rtol=1e-6, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(jacobians(full=True), st.sampled_from([0.0, 0.2, 0.4, 0.9]))
def test_cagrad_stays_in_its_ball_and_is_best_for_the_worst_off(rows: Array, c: float) -> None:
    gramian = rows @ rows.T
    direction, mean = rows.T @ cagrad(gramian, c) * (1 + c) / len(rows), rows.mean(axis=0)
    assert np.linalg.norm(direction - mean) <= c * np.linalg.norm(mean) * (1 + 1e-5) + 1e-12
    worst = (rows @ direction).min()

    def dual(weights: Array) -> float:
        hull = rows.T @ weights
        return float(hull @ mean + c * np.linalg.norm(mean) * np.linalg.norm(hull))

    start = np.full(len(rows), 1 / len(rows))
    simplex = {"type": "eq", "fun": lambda w: w.sum() - 1}
    peer = minimize(dual, start, bounds=[(0, 1)] * len(rows), constraints=[simplex], options={"ftol": 1e-12})
    # Duality: no direction of the ball does better by the worst-off task than the dual's least value.
    assert worst <= peer.fun + 1e-4 * size(rows)
    assert worst >= peer.fun - 1e-3 * size(rows)


def test_pcgrad_without_conflict_is_the_sum_and_with_one_is_known() -> None:
    rows = np.abs(np.random.default_rng(1).standard_normal((4, 6)))
    orders = [ANY_ORDER.permutation(4) for _ in range(4)]
    np.testing.assert_array_equal(pcgrad(rows @ rows.T, orders), np.ones(4))
    pair = np.array([[1.0, 0.0], [-1.0, 1.0]])
    # (1,0) off (-1,1): (1/2, 1/2); (-1,1) off (1,0): (0, 1).
    found = pair.T @ pcgrad(pair @ pair.T, [np.arange(2)] * 2)
    np.testing.assert_allclose(found, [0.5, 1.5], atol=1e-12)
    assert (pair @ found).min() >= 0


def quadratics(solve: Callable[[Array], Array], s: float) -> Array:
    """Where descent of ``|x - (0, 0)|²`` and ``s |x - (1, 0)|²`` from (0.3, 1) comes to rest."""
    a, b, x = np.zeros(2), np.array([1.0, 0.0]), np.array([0.3, 1.0])
    for _ in range(1500):
        rows = np.stack([2 * (x - a), 2 * s * (x - b)])
        x = x - 0.002 * rows.T @ solve(rows @ rows.T)
    return x


@pytest.mark.parametrize("name", ["mgda", "upgrad", "imtl_g", "nash", "aligned", "cagrad", "pcgrad"])
@pytest.mark.parametrize("s", [1.0, 100.0])
def test_two_quadratics_reach_the_segment_between_their_minima(name: str, s: float) -> None:
    x = quadratics(SOLVERS[name], s)
    assert abs(x[1]) < 1e-3
    assert -1e-3 <= x[0] <= 1 + 1e-3


def test_two_quadratics_have_the_known_ends() -> None:
    equal = quadratics(lambda gramian: np.ones(len(gramian)), 100.0)
    np.testing.assert_allclose(equal, [100 / 101, 0], atol=1e-6)
    # Close to the first minimum the gradient of the first is the shorter, and MGDA goes there; UPGrad goes further.
    ends = {name: quadratics(SOLVERS[name], 100.0)[0] for name in ("mgda", "imtl_g", "upgrad")}
    assert ends["mgda"] < ends["imtl_g"] < ends["upgrad"] < equal[0]


def paths(solve: Callable[[Array], Array], s: float) -> Array:
    """The directions that the same points get."""
    found = []
    for x in np.random.default_rng(2).normal(size=(20, 2)):
        rows = np.stack([2 * x, 2 * s * (x - [1.0, 0.0])])
        direction = rows.T @ solve(rows @ rows.T)
        found.append(direction / np.linalg.norm(direction))
    return np.stack(found)


@pytest.mark.parametrize("name", ["nash", "imtl_g"])
def test_no_scale_of_a_task_turns_the_direction(name: str) -> None:
    np.testing.assert_allclose(paths(SOLVERS[name], 1.0), paths(SOLVERS[name], 100.0), atol=1e-5)
    assert np.abs(paths(SOLVERS["mgda"], 1.0) - paths(SOLVERS["mgda"], 100.0)).max() > 0.1


def toy(x: Array) -> tuple[float, float]:
    """Two losses with a ridge above their common front at the bottom (Liu et al. 2021; scale of Navon et al. 2022)."""
    a, b = float(x[0]), float(x[1])
    top, bottom = max(math.tanh(b / 2), 0.0), max(math.tanh(-b / 2), 0.0)
    first = math.log(max(abs((-a - 7) / 2 - math.tanh(-b)), 5e-6)) + 6
    second = math.log(max(abs((-a + 3) / 2 - math.tanh(-b) + 2), 5e-6)) + 6
    left, right = (((-a + s) ** 2 + 0.1 * (-b - 8) ** 2) / 10 - 20 for s in (7, -7))
    return 0.1 * (first * top + left * bottom), second * top + right * bottom


def descend(solve: Callable[[Array], Array], x: Array) -> Array:
    """6,000 steps of Adam."""
    mean, square, h = np.zeros(2), np.zeros(2), 1e-6
    for step in range(1, 6001):
        rows = np.stack([np.subtract(toy(x + e), toy(x - e)) / (2 * h) for e in h * np.eye(2)], axis=1)
        move = rows.T @ solve(rows @ rows.T)
        mean, square = 0.9 * mean + 0.1 * move, 0.999 * square + 0.001 * move**2
        x = x - 0.01 * mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return x


def reaches_the_front(x: Array) -> bool:
    # The front is where both lower bowls agree: between their centres, at the depth of both.
    return bool(-7.5 < x[0] < 7.5 and -9 < x[1] < -7)


@pytest.mark.slow
def test_the_bargain_reaches_the_front_from_all_five_starts_and_the_plain_sum_is_held_up() -> None:
    starts = [np.array(start) for start in ((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0))]
    assert all(reaches_the_front(descend(nash, start)) for start in starts)
    assert not reaches_the_front(descend(lambda gramian: np.ones(len(gramian)), starts[2]))
