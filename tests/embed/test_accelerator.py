"""The way of a batch over a device that works behind the host's back, played by a device of the tests' own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from histotl.core.values import BackboneCard, FeatureIdentity
from histotl.embed import engine
from histotl.embed._accelerator import Host, HostMark, Mark, accelerator_of
from histotl.embed._batch_size import find_batch_size
from histotl.embed._compute import Compute
from histotl.embed._models import Model
from histotl.embed.engine import embed_slides
from histotl.embed.telemetry import Clock
from histotl.store import layout
from histotl.store.embeddings import open_embeddings

CPU = torch.device("cpu")
CARD = BackboneCard(name="mean", dim=1, pooling="avg", input_px=4, mean=(0.0,) * 3, std=(1.0,) * 3)


@dataclass(eq=False)
class LateMark:
    """Nothing before it has happened until somebody waits."""

    work: Callable[[], None] | None
    at_s: float

    def wait(self) -> None:
        if self.work is not None:
            work, self.work = self.work, None
            work()

    def seconds_after(self, earlier: Mark) -> float:
        return self.at_s - earlier.at_s


class LateDevice(Host):
    """Works on batches one after the other; features are garbage on the host until their mark is waited for."""

    in_flight = 2

    def __init__(self) -> None:
        super().__init__(CPU)
        self.clock_s, self.inputs = 0.0, []

    def copy_in(self, tiles: torch.Tensor) -> tuple[torch.Tensor, Mark, Mark]:
        self.inputs.append(tiles)
        return tiles.clone(), self.mark(), self.mark()

    def copy_out(self, features: torch.Tensor) -> tuple[torch.Tensor, Mark]:
        host, kept = torch.full_like(features, torch.nan), features.clone()
        return host, LateMark(lambda: np.copyto(host.numpy(), kept.numpy()), self.clock_s)

    def mark(self) -> Mark:
        self.clock_s += 1.0
        return LateMark(None, self.clock_s)


class Mean:
    card = CARD

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        return tiles.float().mean((1, 2, 3))[:, None]


def model(embedder: object) -> Model:
    identity = FeatureIdentity.of(CARD, None, stain="none", compute="fp32", dtype="fp32")
    return Model(spec="x", embedder=embedder, device=CPU, identity=identity)


def batch(value: int) -> torch.Tensor:
    return torch.full((2, 4, 4, 3), value, dtype=torch.uint8)


def same(tiles: torch.Tensor) -> torch.Tensor:
    return tiles


def test_buffers_come_back_when_the_device_is_through_and_never_more_than_two_are_out():
    clock, released = Clock(), []
    compute = Compute(LateDevice(), clock)
    found = []
    for number in range(5):
        found += compute.run(batch(number), same, [model(Mean())], lambda number=number: released.append(number))
        assert released == list(range(max(0, number - 1)))
    compute.finish()
    assert released == [0, 1, 2, 3, 4]
    assert all(bool(features.host.isnan().all()) for features in found)
    assert [features.numpy()[0, 0] for features in found] == [0, 1, 2, 3, 4]
    # One step of its clock between two marks.
    assert [clock.seconds[stage] for stage in ("copy", "transform", "forward")] == [5, 5, 5]


def test_a_failing_network_keeps_the_order_and_gives_its_buffer_back_once():
    class Broken(Mean):
        def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no kernel")

    clock, released = Clock(), []
    compute = Compute(LateDevice(), clock)
    compute.run(batch(0), same, [model(Mean())], lambda: released.append(0))
    with pytest.raises(RuntimeError, match="no kernel"):
        compute.run(batch(1), same, [model(Broken())], lambda: released.append(1))
    assert released == []
    compute.finish()
    compute.finish()
    assert released == [0, 1]
    assert clock.seconds["forward"] == 1


def test_a_cpu_is_through_when_the_call_returns():
    released = []
    tiles = batch(7)
    (features,) = Compute(accelerator_of(CPU), Clock()).run(tiles, same, [model(Mean())], lambda: released.append(0))
    assert released == [0]
    assert features.host[0, 0] == 7
    assert isinstance(features.ready, HostMark)


def test_marks_of_two_devices_have_no_time_between_them():
    with pytest.raises(TypeError, match="LateMark is no HostMark"):
        HostMark(1.0).seconds_after(LateMark(None, 0.0))


def test_a_run_gives_the_same_files_on_a_device_that_works_behind_its_back(
    tmp_path, slides, tiling, config, monkeypatch
):
    config = replace(config, batch_size=5)

    def run(name: str) -> dict[str, np.ndarray]:
        summary = embed_slides(slides, tmp_path / name, tiling=tiling, config=config)
        assert not summary.failed
        assert summary.telemetry is not None
        assert summary.telemetry.seconds["forward"] > 0
        return {path.stem: _features(path) for path in layout.find_features(tmp_path / name)}

    devices: list[LateDevice] = []

    def late(device: torch.device) -> LateDevice:
        devices.append(LateDevice())
        return devices[-1]

    wanted = run("cpu")
    monkeypatch.setattr(engine, "accelerator_of", late)
    found = run("late")
    assert devices[0].inputs
    assert len(found) > 1
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)


def _features(path) -> np.ndarray:
    with open_embeddings(path) as file:
        return file.read()


class Board(Host):
    """A device with so much memory, of which every tile takes 1."""

    def __init__(self, total: int) -> None:
        super().__init__(CPU)
        self.total, self.most, self.forgotten = total, 0, 0

    def total_memory(self) -> int:
        return self.total

    def most_memory(self) -> int:
        return self.most

    def forget_most_memory(self) -> None:
        self.most, self.forgotten = 0, self.forgotten + 1


class Hungry(Mean):
    """Takes memory, and time by its batch size."""

    def __init__(self, board: Board, seconds: dict[int, float], now: list[float]) -> None:
        self.board, self.seconds, self.now = board, seconds, now

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        self.board.most = max(self.board.most, len(tiles))
        if len(tiles) > self.board.total:
            raise torch.OutOfMemoryError("no room")
        self.now[0] += self.seconds[len(tiles)]
        return super().__call__(tiles)


@pytest.mark.parametrize(
    ("total", "seconds", "wanted"),
    [
        (1000, {8: 1.0, 16: 1.0, 32: 1.99, 64: 1.0}, 16),  # twice the tiles in twice the time is no gain
        (1000, {8: 1.0, 16: 1.0, 32: 1.0, 64: 1.0}, 64),
        (36, {8: 1.0, 16: 1.0, 32: 1.0, 64: 1.0}, 16),  # 32 of 36 leave too little
        (20, {8: 1.0, 16: 1.0, 32: 1.0, 64: 1.0}, 16),  # 32 do not fit at all
        (4, {8: 1.0, 16: 1.0, 32: 1.0, 64: 1.0}, 1),
    ],
)
def test_the_batch_size_is_the_smallest_that_is_fast_and_leaves_room(total, seconds, wanted, monkeypatch):
    now, board = [0.0], Board(total)
    monkeypatch.setattr("histotl.embed._batch_size.time.perf_counter", lambda: now[0])
    found = find_batch_size([model(Hungry(board, seconds, now))], board, 4, (8, 16, 32, 64))
    assert found == wanted
    assert board.most == 0, "what the trial took is given back"
