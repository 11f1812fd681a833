from __future__ import annotations

import numpy as np
import pytest
import torch

from histotl.core.errors import TableError
from histotl.learn.bags import Bags
from histotl.learn.gate import NormalMap, detector_names, p_values
from histotl.learn.gate_fit import fit_gate, score_bags
from histotl.learn.rows import ArrayRows

SPECS = ("mahalanobis", "knn")


def bags(rng: np.random.Generator, n: int, *, tiles: int = 1, shift: float = 0.0) -> Bags:
    sizes = np.full(n, 1) if tiles == 1 else rng.integers(1, tiles, n)
    slide = rng.normal(size=(n, 6)) * 0.5
    x = slide.repeat(sizes, axis=0) + rng.normal(size=(sizes.sum(), 6)) + shift
    return Bags.of(ArrayRows(x.astype(np.float32)), np.split(np.arange(len(x)), np.cumsum(sizes)[:-1]))


@pytest.mark.parametrize("with_tiles", [False, True])
def test_false_flags_are_as_promised(with_tiles: bool) -> None:
    # 200 repeats of 20 new cases against 39 calibration cases: the promise is at most 0.1, and it is nearly met.
    rng, flags = np.random.default_rng(0), []
    train = bags(rng, 40, tiles=6 if with_tiles else 1)
    for repeat in range(200):
        val, new = (bags(rng, n, tiles=6 if with_tiles else 1) for n in (39, 20))
        if repeat == 0:
            gate = fit_gate(
                train,
                val,
                specs=SPECS,
                labels=None,
                patients=[str(i) for i in range(40)],
                with_tiles=with_tiles,
                alpha=0.1,
                seed=0,
            )
        scores = np.sort(score_bags(gate, val, np.arange(39)).score)
        flags.append((p_values(scores, score_bags(gate, new, np.arange(20)).score) <= 0.1).mean())
    error = np.std(flags) / np.sqrt(len(flags))
    assert abs(np.mean(flags) - 0.1) < 3 * error


def test_shifted_slides_are_flagged_and_scores_keep_their_order() -> None:
    rng = np.random.default_rng(1)
    train, val = bags(rng, 60, tiles=20), bags(rng, 40, tiles=20)
    gate = fit_gate(
        train,
        val,
        specs=SPECS,
        labels=np.arange(60) % 2,
        patients=[str(i // 2) for i in range(60)],
        with_tiles=True,
        alpha=0.05,
        seed=0,
    )
    near, far = (score_bags(gate, bags(rng, 30, tiles=20, shift=s), np.arange(30)) for s in (5.0, 50.0))
    assert near.flag.all()
    assert set(near.raw) == {"mahalanobis", "knn", "tiles"}
    # Beyond all calibration scores the order is still kept.
    assert far.score.min() > near.score.max()
    assert near.p.max() == pytest.approx(1 / 41)
    assert near.tiles is not None
    assert near.tiles.shape[0] >= 30


def test_order_of_training_and_chunks_do_not_matter() -> None:
    rng = np.random.default_rng(2)
    val = bags(rng, 25)
    gate = fit_gate(
        bags(rng, 50), val, specs=SPECS, labels=None, patients=["a", "b"] * 25, with_tiles=False, alpha=0.05, seed=0
    )
    whole = score_bags(gate, val, np.arange(25)).score
    single = np.concatenate([score_bags(gate, val, np.array([i])).score for i in range(25)])
    np.testing.assert_allclose(whole, single, atol=1e-4)
    np.testing.assert_allclose(np.sort(whole), gate.calibration, atol=1e-4)


def test_normal_map_is_monotone_and_standard_on_its_own_scores() -> None:
    scores = np.random.default_rng(0).exponential(size=400)
    mapped = NormalMap.of(scores)
    assert abs(mapped(scores).mean()) < 0.02
    assert mapped(scores).std() == pytest.approx(1, abs=0.05)
    wide = np.linspace(-5, 50, 2000)
    assert (np.diff(mapped(wide)) > 0).sum() > 1900
    assert (np.diff(mapped(wide)) >= 0).all()
    large = np.random.default_rng(1).normal(size=5000)
    np.testing.assert_allclose(NormalMap.of(large)(large), NormalMap.of(large[:5000])(large))
    assert len(NormalMap.of(large).raw) <= 512
    assert np.isfinite(NormalMap.of(np.ones(3))(np.array([0.0, 1.0, 2.0]))).all()


def test_p_values_by_hand() -> None:
    np.testing.assert_allclose(p_values(np.array([1.0, 2.0, 2.0, 3.0]), np.array([0.0, 2.0, 3.5])), [1.0, 0.8, 0.2])


def test_names_and_too_few_cases() -> None:
    assert detector_names(("knn", "mahalanobis")) == {"knn": "knn", "mahalanobis": "mahalanobis"}
    assert list(detector_names(("knn(k=1)", "knn(k=5)"))) == ["knn(k=1)", "knn(k=5)"]
    rng = np.random.default_rng(0)
    with pytest.raises(TableError, match="2 training cases, not 1"):
        fit_gate(
            bags(rng, 1), bags(rng, 5), specs=SPECS, labels=None, patients=["a"], with_tiles=False, alpha=0.05, seed=0
        )


def test_a_single_patient_still_gets_a_gate() -> None:
    rng = np.random.default_rng(0)
    gate = fit_gate(
        bags(rng, 10), bags(rng, 5), specs=SPECS, labels=None, patients=["a"] * 10, with_tiles=False, alpha=0.05, seed=0
    )
    assert torch.isfinite(torch.from_numpy(gate.calibration)).all()


@pytest.mark.parametrize("tiles", [1, 8])
def test_few_validation_cases_can_still_flag_and_do_not_flag_too_much(tiles: int) -> None:
    # 8 validation cases alone could give no p below 1/9; held-out training scores join them.
    flags, far = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        train, val, new = (bags(rng, n, tiles=tiles) for n in (30, 8, 40))
        patients = [str(i) for i in range(30)]
        gate = fit_gate(
            train, val, specs=SPECS, labels=None, patients=patients, with_tiles=tiles > 1, alpha=0.05, seed=seed
        )
        assert len(gate.calibration) == 38
        flags.append(score_bags(gate, new, np.arange(40)).flag.mean())
        far.append(score_bags(gate, bags(rng, 5, tiles=tiles, shift=9.0), np.arange(5)).flag.all())
    assert all(far)
    # The guarantee of cross-conformal p-values is twice alpha.
    assert np.mean(flags) < 0.1
