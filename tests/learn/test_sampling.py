from __future__ import annotations

import threading
from itertools import count, islice

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from histotl.learn import sampling
from histotl.learn.ahead import read_ahead
from histotl.learn.sampling import balanced_batches, batches, fill, thin, tiles_of
from histotl.learn.stopping import has_stalled

OFFSETS = np.array([0, 5, 6, 106, 126])


def test_tiles_of_bags_in_any_order() -> None:
    places, ends = tiles_of(OFFSETS, np.array([3, 0, 1, 0]))
    assert places.tolist() == [*range(106, 126), *range(5), 5, *range(5)]
    assert ends.tolist() == [0, 20, 25, 26, 31]
    none, ends = tiles_of(OFFSETS, np.array([], dtype=np.int64))
    assert (len(none), ends.tolist()) == (0, [0])


def test_thinning_draws_every_tile_equally_often() -> None:
    places, ends = tiles_of(OFFSETS, np.array([2, 0, 3]))
    rng, counts, pairs = np.random.default_rng(0), np.zeros(126), 0
    for _ in range(2000):
        found, kept = thin(places, ends, 10, rng)
        assert kept.tolist() == [0, 10, 15, 25]
        bags = np.split(found, kept[1:-1])
        assert all((np.diff(bag) > 0).all() for bag in bags)
        counts[found] += 1
        pairs += {106, 107} <= set(bags[2].tolist())
    assert counts[:5].tolist() == [2000] * 5
    assert counts[5] == 0
    assert chisquare(counts[6:106]).pvalue > 1e-3
    assert chisquare(counts[106:]).pvalue > 1e-3
    # Without replacement: both of two tiles with the chance 10/20 * 9/19.
    assert abs(pairs / 2000 - 90 / 380) < 4 * np.sqrt(0.237 * 0.763 / 2000)


def test_thinning_depends_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    places, ends = tiles_of(OFFSETS, np.arange(4))
    one, same, other = (thin(places, ends, 10, np.random.default_rng(seed))[0] for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    # The sort of a device gives what numpy's gives.
    on_device = thin(places, ends, 10, np.random.default_rng(0), torch.device("cpu", 0))[0]
    monkeypatch.setattr(sampling.np, "sort", None)
    device = type("Gpu", (), {"type": "cuda"})()
    monkeypatch.setattr(torch.Tensor, "to", lambda self, _: self)
    assert np.array_equal(thin(places, ends, 10, np.random.default_rng(0), device)[0], on_device)


def test_small_bags_are_left_as_they_are() -> None:
    places, ends = tiles_of(OFFSETS, np.arange(2))
    rng = np.random.default_rng(0)
    assert thin(places, ends, 5, rng)[0] is places
    assert rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize("budget", [1, 700, 2048, 10**6])
def test_steps_of_a_tile_budget_are_nearly_equal_and_lose_no_bag(budget: int) -> None:
    rng = np.random.default_rng(0)
    sizes = np.minimum(rng.lognormal(5.5, 1, 300).astype(np.int64) + 1, 512)
    stream, passes = balanced_batches(sizes, budget, rng), []
    for _ in range(3):
        steps: list[np.ndarray] = []
        while sum(map(len, steps)) < len(sizes):
            steps.append(next(stream))
        assert np.array_equal(np.sort(np.concatenate(steps)), np.arange(300))
        loads = np.array([sizes[step].sum() for step in steps])
        assert loads.max() <= max(budget, sizes.max())
        assert loads.max() - loads.min() <= sizes.max()
        # No step could take the bag that asked for one more: all are full but for less than the largest bag.
        assert len(steps) <= max(1, sizes.sum() / max(1, budget - sizes.max()) + 1)
        passes.append([tuple(step) for step in steps])
    assert budget == 10**6 or passes[0] != passes[1] != passes[2]


def test_large_and_small_bags_meet_by_chance() -> None:
    """Sorted packing would put the largest bags of all into different steps each time."""
    sizes = np.array([100] * 4 + [10] * 60)
    rng = np.random.default_rng(0)
    together = 0
    for _ in range(200):
        steps = fill(sizes, 300, rng.permutation(64))
        together += any({0, 1} <= set(step.tolist()) for step in steps)
    assert 0 < together < 200


def test_plain_batches_have_no_bag_twice_in_a_pass() -> None:
    found = list(islice(batches(10, 3, np.random.default_rng(0)), 3))
    assert len(set(np.concatenate(found).tolist())) == 9


def test_reading_ahead_keeps_the_order_and_passes_errors_on() -> None:
    names: set[str] = set()

    def read(number: int) -> int:
        names.add(threading.current_thread().name)
        if number == 5:
            raise OSError("gone")
        return number * 10

    stream = read_ahead(count(), read)
    assert list(islice(stream, 5)) == [(i, 10 * i) for i in range(5)]
    with pytest.raises(OSError, match="gone"):
        next(stream)
    assert all(name.startswith("histotl-rows") for name in names)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("histotl-rows")]


def test_training_ends_only_after_looks_without_improvement() -> None:
    assert not has_stalled([3.0, 2.0, 2.5, 2.5], 0)
    assert not has_stalled([3.0, 2.0, 2.5], 2)
    assert has_stalled([3.0, 2.0, 2.5, 2.0], 2)
    assert not has_stalled([3.0, 2.0, 2.5, 1.9], 2)
    assert not has_stalled([3.0], 1)
