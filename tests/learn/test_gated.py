from __future__ import annotations

import pytest
import torch

from histotl.learn import gated
from histotl.learn.gated import Embedding, GatedScores


@pytest.mark.parametrize("gates", [True, False])
@pytest.mark.parametrize("rows_at_a_time", [4, 2048])
def test_scores_and_their_gradients(gates: bool, rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gated, "ROWS", rows_at_a_time)
    torch.manual_seed(0)
    module, h = GatedScores(6, 4, 3, gated=gates).double(), torch.randn(11, 6).double().requires_grad_()
    plain = h @ module.gates.weight.T + module.gates.bias
    inner = torch.tanh(plain[:, :4]) * torch.sigmoid(plain[:, 4:]) if gates else torch.tanh(plain)
    wanted = inner @ module.score.weight.T
    torch.testing.assert_close(module(h), wanted, rtol=0, atol=1e-14)
    leaves = [h, *module.parameters()]
    ours = torch.autograd.grad(module(h).square().sum(), leaves)
    for found, expected in zip(ours, torch.autograd.grad(wanted.square().sum(), leaves), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_embedding_without_dropout() -> None:
    torch.manual_seed(0)
    module, x = Embedding(5, 7, 0.5).double().eval(), torch.randn(9, 5).double().requires_grad_()
    wanted = torch.relu(x @ module.linear.weight.T + module.linear.bias)
    torch.testing.assert_close(module(x), wanted, rtol=0, atol=1e-14)
    leaves = [x, *module.parameters()]
    ours = torch.autograd.grad(module(x).square().sum(), leaves)
    for found, expected in zip(ours, torch.autograd.grad(wanted.square().sum(), leaves), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.1])
def test_dropout_drops_its_share_and_passes_what_it_kept(share: float) -> None:
    torch.manual_seed(0)
    module = Embedding(4, 50, share)
    torch.nn.init.zeros_(module.linear.weight)
    torch.nn.init.ones_(module.linear.bias)
    x = torch.randn(4001, 4)
    h = module(x)
    kept = h > 0
    torch.testing.assert_close(h[kept], torch.full_like(h[kept], 1 / (1 - share)))
    # Five deviations of a count of 200,050 cells.
    assert abs(float((~kept).float().mean()) - share) < 5 * (share * (1 - share) / kept.numel()) ** 0.5
    assert abs(float(torch.corrcoef(kept[:, :4].T.float())[0, 1])) < 0.1, "neighbouring cells share a random number"
    (slope,) = torch.autograd.grad(h.sum(), module.linear.bias)
    torch.testing.assert_close(slope, kept.sum(0) / (1 - share), rtol=1e-4, atol=0)
    assert not torch.equal(module(x) > 0, kept), "each step drops others"
    torch.manual_seed(7)
    first = module(x)
    torch.manual_seed(7)
    assert torch.equal(module(x), first)
