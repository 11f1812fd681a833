"""Several augmentations as one text."""

from __future__ import annotations

import pytest
import torch

from histotl.core.errors import SpecError, UnknownNameError, UsageError
from histotl.core.spec import split_spec
from histotl.image.augment.d4 import D4
from histotl.image.augment.hed_jitter import HedJitter
from histotl.image.chain import Chain

TEXTS = [
    "d4",
    "d4 + hed_jitter(sigma=0.1) + blur(max_sigma_px=1)",
    "jpeg(least=30)+cutout(fill='white')+d4",
    "albumentations(pipeline='HorizontalFlip + GaussianBlur(p=1.0)') + mpp_jitter",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_canonical_text_builds_the_same_chain(text: str, tissue: torch.Tensor) -> None:
    chain, seeds = Chain.of(text), torch.tensor([3, 1, 4, 1])
    assert Chain.of(str(chain)) == chain
    assert str(Chain.of(str(chain))) == str(chain)
    views = chain(tissue, seeds)
    assert torch.equal(Chain.of(str(chain))(tissue, seeds), views)
    assert torch.equal(torch.cat([chain(t[None], s[None]) for t, s in zip(tissue, seeds, strict=True)]), views)


def test_a_chain_is_its_links_in_order() -> None:
    chain = Chain.of(" d4+ hed_jitter( sigma = 0.1 )")
    assert chain.links == (D4(), HedJitter(sigma=0.1))
    assert str(chain) == "d4 + hed_jitter(sigma=0.1, bias=0.05)"
    assert str(Chain.of("hed_jitter + d4")) == "hed_jitter(sigma=0.05, bias=0.05) + d4"


def test_links_of_one_kind_do_not_repeat_each_other() -> None:
    tile = torch.arange(48, dtype=torch.uint8).view(1, 4, 4, 3).repeat(800, 1, 1, 1)
    twice = Chain.of("d4 + d4")(tile, torch.arange(800))
    counts = twice.flatten(1).unique(dim=0, return_counts=True)[1]
    assert len(counts) == 8  # all equally likely again; one element taken twice would give six
    assert counts.min() > 60


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a+b", ["a", "b"]),
        ("a(x=1e+5) + b(y='c + d')", ["a(x=1e+5)", "b(y='c + d')"]),
        ("""a(x='it\\'s + "') + b(y="+")""", ["""a(x='it\\'s + "')""", """b(y="+")"""]),
        ("a(x=(1, [2 + 3])) +", ["a(x=(1, [2 + 3]))", ""]),
        ("", [""]),
    ],
)
def test_only_a_plus_between_specs_splits(text: str, parts: list[str]) -> None:
    assert split_spec(text) == parts


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("", SpecError, "no augmentation"),
        ("d4 +", SpecError, "nothing on one side"),
        ("d4 + + blur", SpecError, "nothing on one side"),
        ("d4 + hed_jiter", UnknownNameError, "hed_jiter"),
        ("d4 + blur(sigma=1)", SpecError, "no argument 'sigma'"),
        ("d4 + blur(max_sigma_px=-1)", UsageError, "max_sigma_px is -1"),
        ("d4(", SpecError, "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        Chain.of(text)
    assert caught.value.hint
