"""A recorded network is the network, bit by bit, or is not used."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from histotl.backbones import _recorded
from histotl.backbones._network import NetworkEmbedder, finish, seeded
from histotl.backbones._recorded import recorded
from histotl.core.values import BackboneCard

CARD = BackboneCard(name="net", dim=1, pooling="avg", input_px=16, mean=(0.5,) * 3, std=(0.2,) * 3)
CPU = torch.device("cpu")


class Net(torch.nn.Module):
    """A small network that counts how often its Python code ran."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Hardswish(), torch.nn.Conv2d(8, 6, 3)
        )
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.layers(images).mean((2, 3))


def embedder_of(net: torch.nn.Module) -> NetworkEmbedder:
    return finish(net, net, CARD, CPU, arguments={})


def batches(count: int, size: int = 64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 256, (size, 16, 16, 3), dtype=torch.uint8, generator=generator) for _ in range(count)]


def run(embedder: NetworkEmbedder, tiles: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [embedder(batch) for batch in tiles]


def test_after_some_time_the_graph_takes_over_with_equal_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_recorded, "_FIRST_S", 0.0)
    with seeded(1):
        net = Net()
    plain = embedder_of(net)
    tiles = [*batches(1, size=1), *batches(4), *batches(1, size=3), *batches(1, size=1), *batches(1, size=0)]
    wanted = run(plain, tiles)
    graphic = recorded(plain)
    assert graphic.card == plain.card
    before = net.calls
    found = run(graphic, tiles[:1])
    assert net.calls == before + 1, "one tile does not show what a batch does"
    found += run(graphic, tiles[1:2])
    assert net.calls > before + 2, "recording ran it too"
    before = net.calls
    found += run(graphic, tiles[2:])
    assert net.calls == before, "the graph runs no Python of the network"
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_several_threads_use_it_at_once_and_one_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_recorded, "_FIRST_S", 0.0)
    times, real = [], _recorded._RecordedLater._record
    monkeypatch.setattr(
        _recorded._RecordedLater, "_record", lambda self, *batch: times.append(batch) or real(self, *batch)
    )
    with seeded(1):
        net = Net()
    plain = embedder_of(net)
    shares = [batches(12, size=size) for size in (64, 7, 33, 2)]
    wanted = [run(plain, share) for share in shares]
    graphic, together = recorded(plain), threading.Barrier(len(shares))

    def work(share: list[torch.Tensor]) -> list[torch.Tensor]:
        together.wait(5)
        return run(graphic, share)

    with ThreadPoolExecutor(len(shares)) as pool:
        first = list(pool.map(work, shares))
        before = net.calls
        second = list(pool.map(work, shares))
    assert net.calls == before, "the graph runs in all of them"
    assert len(times) == 1
    for found in (first, second):
        for mine, own in zip(found, wanted, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, own, strict=True))


class ByItsBatch(Net):
    """What the recorder cannot follow: the batch size decides in Python."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * (2.0 if len(images) == 2 else 1.0)


class Unrecordable(Net):
    """Its code cannot be recorded at all."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("cannot be recorded")
        return super().forward(images)


@pytest.mark.parametrize(("kind", "told"), [(ByItsBatch, "gives other features"), (Unrecordable, "cannot be recorded")])
def test_a_network_that_cannot_be_recorded_goes_on_as_it_is(
    kind: type[Net], told: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_recorded, "_FIRST_S", 0.0)
    with seeded(1):
        net = kind()
    plain = embedder_of(net)
    tiles = batches(6)
    wanted = run(plain, tiles)
    with caplog.at_level(logging.DEBUG, logger=_recorded.__name__):
        found = run(recorded(plain), tiles)
    assert sum(told in line for line in caplog.messages) == 1, "tried once"
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_short_run_is_not_worth_it() -> None:
    with seeded(1):
        net = Net()
    graphic = recorded(embedder_of(net))
    before = net.calls
    run(graphic, batches(9))
    assert net.calls == before + 9
