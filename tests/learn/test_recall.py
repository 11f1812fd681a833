"""Votes of kept rows against scikit-learn and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from histotl.learn import recall
from histotl.learn.recall import SHARE_MIN, Recall, default_neighbours, default_votes

K = 3


def filled(n: int = 60, w: int = 6, *, neighbours: int = 7, temperature: float = 0.0, binary: bool = False) -> Recall:
    generator = torch.Generator().manual_seed(0)
    found = Recall(n, w, K, neighbours=neighbours, temperature=temperature, binary=binary)
    votes = torch.eye(K)[torch.randint(0, K, (n,), generator=generator)]
    found.fill(torch.randn(n, w + K, generator=generator), votes, torch.arange(n), None)
    return found


def queries(n: int = 25, w: int = 6) -> torch.Tensor:
    return torch.randn(n, w + K, generator=torch.Generator().manual_seed(1))


def test_plain_votes_are_those_of_scikit_learn() -> None:
    kept, x = filled(), queries()
    shares = kept(x).exp()
    other = KNeighborsClassifier(7, metric="cosine").fit(kept.bank.numpy(), kept.votes.argmax(1).numpy())
    np.testing.assert_allclose(shares, other.predict_proba(x[:, :6].numpy()), atol=2 * SHARE_MIN)
    np.testing.assert_allclose(shares.sum(1), 1, atol=K * SHARE_MIN)


def test_near_votes_weigh_more() -> None:
    kept, x = filled(temperature=0.1), queries()
    found = kept(x).exp().numpy()
    unit = x[:, :6].numpy() / np.linalg.norm(x[:, :6].numpy(), axis=1, keepdims=True)
    for row, shares in zip(unit, found, strict=True):
        cosine = kept.bank.numpy() @ row
        near = np.argsort(-cosine)[:7]
        weight = np.exp(cosine[near] / 0.1)
        wanted = (weight[:, None] * kept.votes.numpy()[near]).sum(0) / weight.sum()
        np.testing.assert_allclose(shares, np.maximum(wanted, SHARE_MIN), rtol=1e-4, atol=1e-6)


def test_shares_of_votes_are_averaged() -> None:
    kept = filled(neighbours=5)
    kept.votes.copy_(torch.softmax(torch.randn(60, K, generator=torch.Generator().manual_seed(2)), dim=1))
    x = queries(1)
    near = kept.cosines(kept.embedded(x))[0].topk(5).indices
    torch.testing.assert_close(kept(x).exp()[0], kept.votes[near].mean(0))


def test_codes_are_compared_by_hamming_distance() -> None:
    kept, x = filled(w=16, binary=True), queries(w=16)
    assert kept.bank.dtype == torch.int8
    assert set(kept.bank.unique().tolist()) == {-1, 1}
    bits = torch.where(x[:, :16] >= 0, 1, -1)
    hamming = (bits[:, None] != kept.bank).sum(2)
    torch.testing.assert_close(kept.cosines(kept.embedded(x)), 1 - 2 * hamming / 16)
    assert not kept(x.requires_grad_()).requires_grad


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, x = filled(temperature=0.1), queries(50)
    whole = kept(x)
    monkeypatch.setattr(recall, "CELLS", 1024 * 7)
    torch.testing.assert_close(kept(x), whole)


def test_gradients_flow_only_where_near_votes_weigh_more() -> None:
    x = queries().requires_grad_()
    assert not filled()(x).requires_grad
    filled(temperature=0.1)(x).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert (x.grad[:, :6] != 0).any()
    assert (x.grad[:, 6:] == 0).all(), "logits of the cross-entropy have no vote"


@pytest.mark.parametrize(("n", "k"), [(1, 1), (49, 1), (150, 2), (1000, 10), (5000, 50), (10**6, 50)])
def test_default_number_of_votes(n: int, k: int) -> None:
    assert default_neighbours(n) == k


def test_there_are_no_more_votes_than_rows() -> None:
    kept = Recall(4, 2, K, neighbours=20, temperature=0.0, binary=False)
    assert kept.neighbours == 4


@pytest.mark.parametrize(("n", "k"), [(3, 3), (117, 10), (1400, 14), (100_000, 50)])
def test_confidence_takes_several_votes(n: int, k: int) -> None:
    assert default_votes(n) == k
