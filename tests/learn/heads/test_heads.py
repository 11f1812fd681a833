from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import log_loss, mean_pinball_loss

from histotl.core.errors import UsageError
from histotl.core.registry import available, create
from histotl.learn.heads.base import Head, TaskFacts

KINDS = ("binary", "multiclass", "multilabel", "ordinal", "regression", "survival")


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
    rows = head(kind).row_losses(outputs, target, None)
    torch.testing.assert_close(rows, -torch.log(p[torch.arange(200), target]), rtol=1e-6, atol=1e-9)
    assert rows.mean().item() == pytest.approx(log_loss(target.numpy(), p.numpy(), labels=range(k)), rel=1e-9)


@pytest.mark.parametrize(("kind", "k"), [("binary", 2), ("multiclass", 5), ("ordinal", 4)])
def test_class_weights_scale_rows(kind: str, k: int) -> None:
    outputs = torch.randn(30, head(kind).n_outputs(k), generator=torch.Generator().manual_seed(1))
    target = torch.arange(30) % k
    weight = torch.arange(1.0, k + 1)
    plain, weighted = head(kind).row_losses(outputs, target, None), head(kind).row_losses(outputs, target, weight)
    torch.testing.assert_close(weighted, plain * weight[target])


def test_ordinal_loss_is_corn_on_its_published_example() -> None:
    # The example in the documentation of coral-pytorch's corn_loss: 0.7127 (or 3.4210 where it divided by 5 classes).
    torch.manual_seed(123)
    features, layer = torch.rand(8, 99), torch.nn.Linear(99, 4)
    target = torch.tensor([0, 1, 2, 2, 2, 3, 4, 4])
    rows = head("ordinal").row_losses(layer(features), target, None)
    terms = sum(int((target >= k).sum()) for k in range(4))
    assert rows.sum().item() / terms == pytest.approx(0.7127, abs=5e-5)
    assert rows.sum().item() / 5 == pytest.approx(3.4210, abs=5e-4)


def test_ordinal_probabilities_by_hand() -> None:
    outputs = torch.logit(torch.tensor([[0.8, 0.5, 0.25]], dtype=torch.float64))
    np.testing.assert_allclose(head("ordinal").probabilities(outputs)[0], [0.2, 0.4, 0.3, 0.1], atol=1e-12)


def test_regression_is_huber() -> None:
    rows = head("regression").row_losses(torch.tensor([[0.5], [3.0]]), torch.tensor([0.0, 0.0]), None)
    np.testing.assert_allclose(rows, [0.125, 2.5])


def test_extreme_outputs_stay_finite() -> None:
    for kind, k in (("binary", 2), ("multiclass", 3), ("ordinal", 3)):
        outputs = torch.full((4, head(kind).n_outputs(k)), 1e4)
        outputs[2:] *= -1
        assert torch.isfinite(head(kind).row_losses(outputs, torch.tensor([0, 1, 0, 1]), None)).all()
        assert torch.isfinite(head(kind).probabilities(outputs)).all()


def test_votes_are_the_mean_of_the_losses_of_their_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    for kind, k in (("binary", 2), ("multiclass", 4)):
        outputs = torch.randn(25, head(kind).n_outputs(k), generator=generator, dtype=torch.float64)
        shares = torch.rand(25, k, generator=generator, dtype=torch.float64)
        shares /= shares.sum(1, keepdim=True)
        weight = torch.arange(1.0, k + 1, dtype=torch.float64)
        for given in (None, weight):
            every = [head(kind).row_losses(outputs, torch.full((25,), c), given) for c in range(k)]
            mean = (torch.stack(every, dim=1) * shares).sum(1)
            torch.testing.assert_close(head(kind).row_losses(outputs, shares, given), mean)


def test_labels_are_single_logistic_losses_and_unknown_entries_have_no_gradient() -> None:
    outputs = torch.randn(10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0.0, 1.0, torch.nan]]).expand(10, 3)
    entries = head("multilabel").row_losses(outputs, target, torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    p = torch.sigmoid(outputs.detach())
    torch.testing.assert_close(entries[:, 0], -torch.log(1 - p[:, 0]))
    torch.testing.assert_close(entries[:, 1], -5 * torch.log(p[:, 1]))
    entries[~torch.isnan(target)].mean().backward()
    assert outputs.grad is not None
    assert (outputs.grad[:, 2] == 0).all()


def test_gaussian_and_quantile_losses_are_those_of_scipy_and_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    y, outputs = rng.normal(size=40), rng.normal(size=(40, 3))
    gaussian = create("head", "regression(loss='gaussian_nll')")
    values = gaussian.probabilities(torch.tensor(outputs[:, :2])).numpy()  # type: ignore[attr-defined]
    rows = gaussian.row_losses(torch.tensor(outputs[:, :2]), torch.tensor(y), None)  # type: ignore[attr-defined]
    np.testing.assert_allclose(rows, -norm.logpdf(y, *values.T) - 0.5 * np.log(2 * np.pi), rtol=1e-9)
    quantile = create("head", "regression(loss='quantile', levels=(0.1, 0.5, 0.9))")
    median, low, high = quantile.probabilities(torch.tensor(outputs)).numpy().T  # type: ignore[attr-defined]
    assert (low < median).all()
    assert (median < high).all()
    pinball = [mean_pinball_loss(y, q, alpha=a) for q, a in ((low, 0.1), (median, 0.5), (high, 0.9))]
    rows = quantile.row_losses(torch.tensor(outputs), torch.tensor(y), None)  # type: ignore[attr-defined]
    assert rows.mean().item() == pytest.approx(np.mean(pinball), rel=1e-9)
    # Outputs of zero are the quantiles of the normal distribution, in units of the labels.
    zeros = quantile.probabilities(torch.zeros(1, 3, dtype=torch.float64)).numpy()  # type: ignore[attr-defined]
    decoded = quantile.decode(zeros, TaskFacts(counts=(1,), mean=5.0, std=2.0))  # type: ignore[attr-defined]
    np.testing.assert_allclose(decoded[0], norm.ppf([0.5, 0.1, 0.9], 5, 2), rtol=1e-9)
    assert quantile.extras == ("q10", "q90")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text",
    [
        "regression(levels=(0.5, 0.1))",
        "regression(levels=(0.1, 0.9))",
        "regression(delta=0)",
        "multiclass(label_smoothing=1.0)",
        "survival(bins=1)",
        "survival(alpha=1.0)",
        "survival(times=(3, 2))",
        "ordinal(value_weight=-1)",
        "embedding(width=0)",
        "embedding(sharpness=0)",
        "embedding(margin=2.5)",
        "embedding(cross_entropy=-1)",
        "embedding(hash_bits=-8)",
        "embedding(hash_radius=0)",
        "embedding(k=-1)",
        "embedding(temperature=-0.1)",
        "embedding(most=0)",
    ],
)
def test_wrong_options_are_refused_with_a_cure(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        create("head", text)
    assert caught.value.hint
