from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from histotl.core.errors import UsageError
from histotl.learn.prior import parse_priors, shifted
from histotl.learn.task import Task

MSI = Task(name="msi", kind="binary", classes=("no", "yes"))
TYPE = Task(name="type", kind="multiclass", classes=("a b", "c"))
SIGNS = Task(name="signs", kind="multilabel", classes=("x", "y"))


def test_shifted_probabilities_are_bayes_rule_for_known_densities() -> None:
    x = np.linspace(-3, 4, 50)
    densities = np.stack([norm.pdf(x, 0, 1), norm.pdf(x, 1, 2), norm.pdf(x, 2, 0.5)], axis=1)

    def posterior(prior: np.ndarray) -> np.ndarray:
        joint = densities * prior
        return np.asarray(joint / joint.sum(axis=1, keepdims=True))

    before, after = np.array([0.5, 0.3, 0.2]), np.array([0.05, 0.05, 0.9])
    np.testing.assert_allclose(shifted(posterior(before), before, after), posterior(after), rtol=1e-12)
    np.testing.assert_allclose(shifted(posterior(before), before, before), posterior(before), rtol=1e-12)
    # A label is a question of two classes.
    yes = densities[:, :1] * 0.3 / (densities[:, :1] * 0.3 + densities[:, 1:2] * 0.7)
    moved = densities[:, :1] * 0.9 / (densities[:, :1] * 0.9 + densities[:, 1:2] * 0.1)
    np.testing.assert_allclose(shifted(yes, np.array([0.3]), np.array([0.9]), labels=True), moved, rtol=1e-12)


def test_priors_are_read_by_class() -> None:
    found = parse_priors(["msi: yes=0.15 no=0.85", "type: a b=0.4, c=0.6", "signs: x=0.5 y=0.9"], [MSI, TYPE, SIGNS])
    assert found["msi"] == pytest.approx([0.85, 0.15])
    assert found["type"] == pytest.approx([0.4, 0.6])
    assert found["signs"] == pytest.approx([0.5, 0.9])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mis: no=0.5 yes=0.5", "no task 'mis'"),
        ("msi: no=0.5", "left out"),
        ("msi: no=0.5 yse=0.5", "unknown or left out"),
        ("msi: no=0.5 yes=0.6", "no shares"),
        ("msi: no=0 yes=1", "no shares"),
        ("msi: nonsense", "cannot be read"),
    ],
)
def test_wrong_priors_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_priors([text], [MSI])
    assert caught.value.hint
