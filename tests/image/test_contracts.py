"""What every stain normaliser and augmentation keeps on painted tissue, beyond the contract that all plug-ins share."""

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest
import torch

from histotl.core.registry import available, create, plugin


def buildable(kind: str) -> list[str]:
    """Names that need no argument, so that a new file is found here without an edit."""
    return [n for n in available(kind) if dataclasses.MISSING not in plugin(kind, n).parameters.values()]


@pytest.mark.parametrize("name", buildable("stain"))
def test_stain(name: str, tissue: torch.Tensor) -> None:
    normalizer = create("stain", name)
    transform = normalizer.fit(tissue)
    result = transform(tissue)
    assert result.shape == tissue.shape
    assert result.dtype == torch.uint8
    assert torch.equal(torch.cat([transform(tile[None]) for tile in tissue]), result)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(tissue), result)  # it crosses process borders
    assert torch.equal(transform(tissue[:0]), tissue[:0])
    json.dumps(dict(transform.state), allow_nan=False)
    assert normalizer.needs_fit == bool(transform.state)


@pytest.mark.parametrize("name", buildable("augment"))
def test_augment(name: str, tissue: torch.Tensor) -> None:
    augment, seeds = create("augment", name), torch.tensor([3, 1, 4, 1])
    views = augment(tissue, seeds)
    assert views.dtype == torch.uint8
    assert torch.equal(torch.cat([augment(t[None], s[None]) for t, s in zip(tissue, seeds, strict=True)]), views)
    assert torch.equal(augment(tissue[:0], seeds[:0]), tissue[:0])
    many = augment(tissue[:1].repeat(64, 1, 1, 1), torch.arange(64))
    assert len(torch.unique(many.flatten(1), dim=0)) > 4, "the seed changes nothing"
