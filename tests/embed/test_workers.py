"""Forward passes side by side: order, bits, threads, idle time, and an end at any moment."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from histotl.backbones import _recorded
from histotl.backbones.color_stats import ColorStatsEmbedder
from histotl.core.errors import HistotlError
from histotl.embed import _models, engine
from histotl.embed import device as device_module
from histotl.embed._workers import Workers
from histotl.embed.config import EmbedConfig, TileConfig
from histotl.embed.device import Forwards, usable_cores
from histotl.embed.engine import embed_slides
from histotl.embed.patches import embed_patches
from histotl.embed.telemetry import WAITING, Clock
from histotl.store.embeddings import open_embeddings

NETWORKS = (
    "scattering(input_px=64)",
    "timm/test_efficientnet(weights='random')",
    "timm/test_vit(weights='random')",
    "timm/test_resnet(weights='random')",
)
"""The bits of the first two change with the threads of one forward pass."""

AUGMENT = "d4 + hed_jitter(sigma=0.2) + blur(max_sigma_px=1.0) + mpp_jitter + albumentations(pipeline='GaussNoise')"


@pytest.fixture
def torch_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with four cores; the number of torch's threads comes back."""
    before = torch.get_num_threads()
    monkeypatch.setattr(device_module, "usable_cores", lambda: 4)
    yield
    torch.set_num_threads(before)


def bits(out: Path) -> dict[str, bytes]:
    """Features, views and quality figures of all files."""
    found = {}
    for path in sorted(out.rglob("features_*/*.h5")):
        with open_embeddings(path) as file:
            name = f"{path.parent.name}/{path.stem}"
            found[name] = file.read().tobytes()
            if file.views is not None:
                found[f"{name} views"] = np.array(file.views).tobytes()
            if file.quality is not None:
                found[f"{name} quality"] = b"".join(
                    file.quality.column(column).tobytes() for column in file.quality.spec.columns
                )
    return found


@pytest.mark.usefixtures("torch_threads")
@pytest.mark.parametrize("backbone", NETWORKS)
def test_features_are_bit_equal_whatever_the_threads_of_torch(backbone, slides, tmp_path, tiling) -> None:
    config = EmbedConfig(
        backbone=(backbone,), stain="reinhard", dtype="fp32", device="cpu", views=2, augment=AUGMENT, batch_size=5
    )
    wanted = None
    for threads, workers in ((1, 1), (2, 2), (4, 1)):
        torch.set_num_threads(threads)
        out = tmp_path / str(threads)
        summary = embed_slides(slides, out, tiling=tiling, config=dataclasses.replace(config, workers=workers))
        assert (summary.telemetry.forwards, summary.telemetry.compute_threads) == (threads, 1)
        assert torch.get_num_threads() == threads, "the caller's own setting"
        found = bits(out)
        assert len(found) == 9
        wanted = wanted or found
        assert found == wanted


@pytest.mark.usefixtures("torch_threads")
def test_patches_are_bit_equal_too(patch_set, tmp_path) -> None:
    config = EmbedConfig(
        backbone=NETWORKS, stain="reinhard", dtype="fp32", device="cpu", views=2, augment=AUGMENT, batch_size=4
    )
    wanted = None
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        summary = embed_patches(patch_set, tmp_path / str(threads), config=config)
        assert (summary.done, summary.telemetry.forwards) == (1, threads)
        found = bits(tmp_path / str(threads))
        assert len(found) == 12
        wanted = wanted or found
        assert found == wanted


@pytest.mark.usefixtures("torch_threads")
def test_a_recorded_network_in_several_threads_gives_the_same_bits(slides, tmp_path, tiling, monkeypatch) -> None:
    config = EmbedConfig(backbone=NETWORKS[2:], dtype="fp32", device="cpu", batch_size=8)
    torch.set_num_threads(1)
    embed_slides(slides, tmp_path / "plain", tiling=tiling, config=config)
    monkeypatch.setattr(_recorded, "_FIRST_S", 0.0)
    graphs, real = [], _recorded._RecordedLater._run
    noted = staticmethod(lambda graph, images: graphs.append(graph) or real(graph, images))
    monkeypatch.setattr(_recorded._RecordedLater, "_run", noted)
    monkeypatch.setattr(_models, "_FAST_S", 1e9)
    torch.set_num_threads(4)
    embed_slides(slides, tmp_path / "recorded", tiling=tiling, config=config)
    assert len({id(graph) for graph in graphs}) == 2
    assert len(graphs) > 2 * 3, "more than recording itself asks for"
    assert bits(tmp_path / "recorded") == bits(tmp_path / "plain")


@pytest.mark.skipif(usable_cores() < 2, reason="one core: nothing could be shared out")
def test_a_forward_pass_keeps_to_one_thread() -> None:
    a = torch.rand(1024, 1024)

    def product() -> float:
        """CPU seconds of the process over those of this thread, of work that torch likes to share out."""
        torch.mm(a, a)
        process, thread = time.process_time(), time.thread_time()
        for _ in range(10):
            torch.mm(a, a)
        return (time.process_time() - process) / (time.thread_time() - thread)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Workers[int, float](Forwards(count=2)) as workers:
            workers.begin(0, product)
            ((_, answer),) = workers.finished(wait_for_all=True)
            assert answer() < 1.3
            assert product() > 1.5, "what it would be otherwise"
    finally:
        torch.set_num_threads(before)


def test_results_come_in_order_whichever_is_ready_first() -> None:
    seen: list[int] = []

    def take(workers: Workers[int, int], *, wait_for_all: bool = False) -> None:
        for token, answer in workers.finished(wait_for_all=wait_for_all):
            assert answer() == token * token
            seen.append(token)

    def work(number: int) -> int:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number * number

    with Workers[int, int](Forwards(count=3)) as workers:
        for number in range(20):
            workers.begin(number, lambda number=number: work(number))
            take(workers)
            assert number + 1 - len(seen) <= workers.most_on_way
        take(workers, wait_for_all=True)
    assert seen == list(range(20))


def test_idle_time_is_counted_over_all_threads() -> None:
    clock, go = Clock(), threading.Event()
    with Workers[int, bool](Forwards(count=2)) as workers:
        workers.begin(0, lambda: go.wait(5))
        while workers._running < 1:
            time.sleep(0.001)
        with workers.waiting(clock):
            time.sleep(0.1)
        assert not workers.are_busy(), "one of them has nothing to do"
        go.set()
        list(workers.finished(wait_for_all=True))
    assert 0.1 <= clock.seconds[WAITING] < 0.19


def test_a_single_forward_pass_is_computed_by_who_asks() -> None:
    with Workers[int, str](Forwards(threads=3)) as workers:
        workers.begin(0, lambda: threading.current_thread().name)
        ((_, answer),) = workers.finished()
        assert answer() == threading.current_thread().name


@pytest.mark.usefixtures("torch_threads")
@pytest.mark.parametrize("threads", [2, 4])
def test_one_bad_tile_among_several_batches_costs_its_slide_only(
    slides, tmp_path, tiling, config, threads, monkeypatch
):
    """Batches of all slides are on their way when one of them fails."""
    embed_slides(slides, tmp_path / "expected", tiling=tiling, config=config)
    wanted = bits(tmp_path / "expected")
    with open_embeddings(next((tmp_path / "expected").rglob("features_*/b.h5"))) as file:
        victim = torch.from_numpy(file.read()[3:4])
    real = ColorStatsEmbedder.__call__

    def picky(embedder: ColorStatsEmbedder, tiles: torch.Tensor) -> torch.Tensor:
        found = real(embedder, tiles)
        if (found - victim).abs().sum(-1).min() < 1e-5:
            time.sleep(0.05)  # others are through meanwhile
            raise HistotlError("does not like this tile", hint="take another")
        return found

    monkeypatch.setattr(ColorStatsEmbedder, "__call__", picky)
    torch.set_num_threads(threads)
    for batch_size in (3, 20):
        out = tmp_path / str(batch_size)
        again = dataclasses.replace(config, batch_size=batch_size)
        summary = embed_slides(slides, out, tiling=tiling, config=again)
        assert [failure.slide_id for failure in summary.failed] == ["b"]
        assert summary.done == 2
        assert bits(out) == {name: found for name, found in wanted.items() if "/b" not in name}
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("histotl-")]


class Slow(torch.nn.Module):
    """Layers of a tenth of a second: a batch takes ten seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(*(Nap() for _ in range(100)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images).mean((2, 3))


class Nap(torch.nn.Module):
    """One of them; takes its time only beside the main thread, so that loading and trials are quick."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.1)
        return images


@pytest.mark.usefixtures("torch_threads")
def test_an_interrupt_does_not_wait_for_the_last_layer(slides, tmp_path, leftovers) -> None:
    card = tmp_path / "slow.toml"
    card.write_text('factory = "tests.embed.test_workers:Slow"\nweights = "own"\npooling = "none"\ninput_px = 64\n')
    config = EmbedConfig(backbone=(f"module(card={str(card)!r})",), device="cpu", quality="none")
    torch.set_num_threads(2)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs are started ignoring it
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            embed_slides(slides, tmp_path / "out", tiling=TileConfig(tile_px=64, mpp=1.0), config=config)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 6
    assert leftovers(tmp_path / "out") == []
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("histotl-")]
    assert not torch.nn.modules.module._global_forward_pre_hooks


@pytest.mark.usefixtures("torch_threads")
def test_small_slides_fill_batches_while_all_threads_have_work(slides, tmp_path, tiling, config, monkeypatch) -> None:
    """With a computer that is always busy, only the last batch is small."""
    monkeypatch.setattr(engine.Workers, "are_busy", lambda self: True)
    sizes, real = [], ColorStatsEmbedder.__call__
    monkeypatch.setattr(
        ColorStatsEmbedder, "__call__", lambda self, tiles: sizes.append(len(tiles)) or real(self, tiles)
    )
    torch.set_num_threads(2)
    summary = embed_slides(slides, tmp_path / "out", tiling=tiling, config=dataclasses.replace(config, batch_size=16))
    assert sorted(sizes)[1:] == [16] * (summary.n_tiles // 16)
