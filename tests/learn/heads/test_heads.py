from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from histotl.core.registry import available, create
from histotl.learn.heads.base import Head

KINDS = ("binary", "multiclass", "ordinal", "regression")


def head(kind: str) -> Head:
    return create("head", kind)  # type: ignore[return-value]


def test_all_kinds_are_registered() -> None:
    assert set(KINDS) <= set(available("head"))


@pytest.mark.parametrize(("kind", "k"), [("binary", 2), ("multiclass", 5), ("ordinal", 4)])
def test_probabilities_are_a_distribution_and_the_loss_is_its_logarithm(kind: str, k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(200, head(kind).n_outputs(k), generator=generator, dtype=torch.float64) * 6
    target = torch.randint(0, k, (200,), generator=generator)
    p = head(kind).probabilities(outputs)
    assert p.shape == (200, k)
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(dim=1), torch.ones(200, dtype=torch.float64), rtol=0, atol=1e-12)
    rows = head(kind).loss(outputs, target, None)
    torch.testing.assert_close(rows, -torch.log(p[torch.arange(200), target]), rtol=1e-6, atol=1e-9)
    assert rows.mean().item() == pytest.approx(log_loss(target.numpy(), p.numpy(), labels=range(k)), rel=1e-9)


@pytest.mark.parametrize(("kind", "k"), [("binary", 2), ("multiclass", 5), ("ordinal", 4)])
def test_class_weights_scale_rows(kind: str, k: int) -> None:
    outputs = torch.randn(30, head(kind).n_outputs(k), generator=torch.Generator().manual_seed(1))
    target = torch.arange(30) % k
    weight = torch.arange(1.0, k + 1)
    plain, weighted = head(kind).loss(outputs, target, None), head(kind).loss(outputs, target, weight)
    torch.testing.assert_close(weighted, plain * weight[target])


def test_ordinal_loss_is_corn_on_its_published_example() -> None:
    # The example in the documentation of coral-pytorch's corn_loss: 0.7127 (or 3.4210 where it divided by 5 classes).
    torch.manual_seed(123)
    features, layer = torch.rand(8, 99), torch.nn.Linear(99, 4)
    target = torch.tensor([0, 1, 2, 2, 2, 3, 4, 4])
    rows = head("ordinal").loss(layer(features), target, None)
    terms = sum(int((target >= k).sum()) for k in range(4))
    assert rows.sum().item() / terms == pytest.approx(0.7127, abs=5e-5)
    assert rows.sum().item() / 5 == pytest.approx(3.4210, abs=5e-4)


def test_ordinal_probabilities_by_hand() -> None:
    outputs = torch.logit(torch.tensor([[0.8, 0.5, 0.25]], dtype=torch.float64))
    np.testing.assert_allclose(head("ordinal").probabilities(outputs)[0], [0.2, 0.4, 0.3, 0.1], atol=1e-12)


def test_regression_is_huber() -> None:
    rows = head("regression").loss(torch.tensor([[0.5], [3.0]]), torch.tensor([0.0, 0.0]), None)
    np.testing.assert_allclose(rows, [0.125, 2.5])


def test_extreme_outputs_stay_finite() -> None:
    for kind, k in (("binary", 2), ("multiclass", 3), ("ordinal", 3)):
        outputs = torch.full((4, head(kind).n_outputs(k)), 1e4)
        outputs[2:] *= -1
        assert torch.isfinite(head(kind).loss(outputs, torch.tensor([0, 1, 0, 1]), None)).all()
        assert torch.isfinite(head(kind).probabilities(outputs)).all()
