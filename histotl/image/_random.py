"""Random numbers that are a function of a seed and a counter, with no state.

The same seed gives the same numbers on every device, in every batch and in every order, which torch's own generators
do not promise.
"""

from __future__ import annotations

import torch

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def uniform(seeds: torch.Tensor, count: int, *, stream: int) -> torch.Tensor:
    """Uniform numbers in [0, 1), from the 64-bit finaliser of SplitMix64 (Steele, Lea & Flood 2014).

    Args:
        seeds: int64 (b,).
        count: Numbers for each seed.
        stream: Users of the same seeds who must not share numbers take different streams.

    Returns:
        float32 (b, count) of 24 random bits each.
    """
    start = _scramble(_scramble(seeds) + _signed(stream * _GOLDEN))
    counter = torch.arange(1, count + 1, dtype=torch.int64, device=seeds.device) * _signed(_GOLDEN)
    bits = _shift(_scramble(start[:, None] + counter), 40)
    return bits.to(torch.float32) * 2.0**-24


def derived(seeds: torch.Tensor, number: int) -> torch.Tensor:
    """Other seeds, int64 (b,), for the user of this number: no two users of the same seeds share theirs."""
    # Below zero, where no stream of numbers is: seeds are never what somebody draws.
    return _scramble(_scramble(seeds) - _signed((number + 1) * _GOLDEN))


def _scramble(value: torch.Tensor) -> torch.Tensor:
    # int64 products wrap as unsigned ones do; only the shifts need care for the sign.
    value = (value ^ _shift(value, 30)) * _signed(_FIRST)
    value = (value ^ _shift(value, 27)) * _signed(_SECOND)
    return value ^ _shift(value, 31)


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value
