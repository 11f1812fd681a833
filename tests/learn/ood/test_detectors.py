from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import OAS
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from histotl.core.registry import available, canonical, create
from histotl.learn.ood.base import Detector
from histotl.learn.ood.mahalanobis import oas

NAMES = available("ood")


def detector(spec: str) -> Detector:
    return create("ood", spec)  # type: ignore[return-value]


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    scale = torch.arange(1.0, d + 1) ** -0.9
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * scale + 3


@pytest.mark.parametrize(("n", "d"), [(200, 12), (20, 60), (5, 3)])
def test_shrinkage_is_that_of_scikit_learn(n: int, d: int) -> None:
    x = rows(n, d).double()
    centred = x - x.mean(dim=0)
    ours = oas(centred.T @ centred / n, n)
    np.testing.assert_allclose(ours, OAS().fit(x.numpy()).covariance_, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("n", "d"), [(300, 10), (40, 80)])
def test_mahalanobis_against_scipy(n: int, d: int) -> None:
    x, queries = rows(n, d), rows(7, d, seed=1)
    labels = torch.arange(n) % 3
    z, y = x.double().numpy(), labels.numpy()
    means = np.stack([z[y == c].mean(axis=0) for c in range(3)])
    precision = np.linalg.inv(OAS(assume_centered=True).fit(z - means[y]).covariance_)
    expected = [min(mahalanobis(q, m, precision) ** 2 for m in means) for q in queries.double().numpy()]
    found = detector("mahalanobis").score(detector("mahalanobis").fit(x, labels), queries)
    np.testing.assert_allclose(found, expected, rtol=2e-4)


def test_mahalanobis_takes_rows_of_unknown_class_for_nothing() -> None:
    x, labels = rows(60, 5), torch.arange(60) % 2
    mixed = detector("mahalanobis").fit(torch.cat([x, x + 100]), torch.cat([labels, torch.full((60,), -1)]))
    plain = detector("mahalanobis").fit(x, labels)
    torch.testing.assert_close(detector("mahalanobis").score(mixed, x[:5]), detector("mahalanobis").score(plain, x[:5]))
    only = detector("mahalanobis").fit(x, torch.full((60,), -1))
    torch.testing.assert_close(only["means"], detector("mahalanobis").fit(x, None)["means"])


@pytest.mark.parametrize(("n", "k"), [(10, 1), (30, 1), (400, 4), (9000, 41)])
def test_knn_against_scikit_learn(n: int, k: int) -> None:
    x, queries = rows(n, 8), rows(20, 8, seed=1)
    state = detector("knn").fit(x, None)
    assert int(state["k"]) == k
    bank = state["bank"].numpy()
    assert len(bank) == min(n, 4096)
    unit = (queries / queries.norm(dim=1, keepdim=True)).numpy()
    expected = NearestNeighbors(n_neighbors=k).fit(bank).kneighbors(unit)[0][:, -1]
    np.testing.assert_allclose(detector("knn").score(state, queries), expected, atol=2e-3)
    assert int(detector("knn(k=50)").fit(rows(20, 4), None)["k"]) == 20


@pytest.mark.parametrize("name", NAMES)
def test_scores_do_not_depend_on_the_batch_and_are_higher_far_away(name: str) -> None:
    x = rows(150, 20)
    state = detector(name).fit(x, torch.arange(150) % 4)
    queries = rows(50, 20, seed=2)
    far = rows(50, 20, seed=3)
    far[:, ::2] += 3
    scores = detector(name).score(state, torch.cat([queries, far]))
    assert scores.shape == (100,)
    assert scores.dtype == torch.float32
    singly = torch.cat([detector(name).score(state, row[None]) for row in torch.cat([queries, far])])
    torch.testing.assert_close(scores, singly, rtol=1e-4, atol=1e-4)
    assert roc_auc_score(np.repeat([0, 1], 50), scores.numpy()) > 0.95
    assert detector(name).score(state, queries[:0]).shape == (0,)


@pytest.mark.parametrize("name", NAMES)
def test_constant_features_one_class_and_few_rows(name: str) -> None:
    x = rows(6, 30)
    x[:, 3] = 1.0
    state = detector(name).fit(x, torch.zeros(6, dtype=torch.int64))
    assert torch.isfinite(detector(name).score(state, x)).all()
    assert torch.isfinite(detector(name).score(state, rows(4, 30).half())).all()
    flat = detector(name).fit(torch.ones(4, 3), None)
    assert torch.isfinite(detector(name).score(flat, torch.ones(2, 3))).all()
    assert create("ood", canonical(detector(name))) == detector(name)


def test_fewer_rows_than_dimensions_still_finds_an_unseen_class() -> None:
    # The case in which a plain fp32 inverse falls apart: 400 rows of 768 numbers, heavy tails, steep spectrum.
    rng = np.random.default_rng(0)
    d, scale = 768, np.arange(1, 769) ** -0.9
    centres = rng.normal(size=(9, d)) * scale * 2

    def draw(n: int, classes: np.ndarray) -> torch.Tensor:
        noise = rng.standard_t(4, size=(n, d)) * scale
        return torch.from_numpy((centres[classes] + noise).astype(np.float32))

    y = rng.integers(0, 8, 400)
    state = detector("mahalanobis").fit(draw(400, y), torch.from_numpy(y))
    known, unseen = draw(300, rng.integers(0, 8, 300)), draw(300, np.full(300, 8))
    scores = detector("mahalanobis").score(state, torch.cat([known, unseen]))
    assert roc_auc_score(np.repeat([0, 1], 300), scores.numpy()) > 0.99
