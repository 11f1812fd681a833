from __future__ import annotations

import pytest
import torch

from histotl.learn.attention import CrossAttention, SelfAttention, with_token


def test_self_attention_is_that_of_torch_bag_by_bag() -> None:
    torch.manual_seed(0)
    ours, theirs = SelfAttention(8, 2).double(), torch.nn.MultiheadAttention(8, 2, batch_first=True).double()
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.inner.weight,
            "in_proj_bias": ours.inner.bias,
            "out_proj.weight": ours.outer.weight,
            "out_proj.bias": ours.outer.bias,
        }
    )
    h, offsets = torch.randn(10, 8).double(), torch.tensor([0, 3, 4, 10])
    found = ours(h, offsets)
    for start, stop in ((0, 3), (3, 4), (4, 10)):
        bag = h[None, start:stop]
        torch.testing.assert_close(found[start:stop], theirs(bag, bag, bag)[0][0])


def test_cross_attention_by_hand() -> None:
    torch.manual_seed(0)
    module, h, offsets = CrossAttention(6, 2).double(), torch.randn(7, 6).double(), torch.tensor([0, 2, 7])
    tokens = torch.randn(2, 3, 6).double()
    found, shares = module(tokens, h, offsets)
    for bag, (start, stop) in enumerate(((0, 2), (2, 7))):
        key, value = (h[start:stop] @ module.inner.weight.T + module.inner.bias).view(-1, 2, 2, 3).unbind(1)
        query = (tokens[bag] @ module.query.weight.T + module.query.bias).view(3, 2, 3)
        share = (torch.einsum("thd,nhd->htn", query, key) / 3**0.5).softmax(2)
        seen = torch.einsum("htn,nhd->thd", share, value).flatten(1)
        torch.testing.assert_close(found[bag], seen @ module.outer.weight.T + module.outer.bias)
        torch.testing.assert_close(shares[start:stop], share.mean(0).T)


@pytest.mark.parametrize("sizes", [[3], [1, 4, 2]])
def test_a_token_goes_before_every_bag(sizes: list[int]) -> None:
    h, offsets = torch.arange(1.0, sum(sizes) + 1)[:, None], torch.tensor([0, *sizes]).cumsum(0)
    joined, inner, places = with_token(h, offsets, torch.zeros(1, 1))
    wanted = [torch.cat([torch.zeros(1, 1), bag]) for bag in torch.split(h, sizes)]
    assert torch.equal(joined, torch.cat(wanted))
    assert torch.diff(inner).tolist() == [size + 1 for size in sizes]
    assert joined[places].abs().sum() == 0
