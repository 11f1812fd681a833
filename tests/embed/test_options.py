"""Options, devices and number formats."""

from __future__ import annotations

import dataclasses
import os
import threading

import pytest
import torch

from histotl.backbones.color_stats import ColorStatsEmbedder
from histotl.core.errors import HistotlError, SetupError, UsageError
from histotl.core.values import BackboneCard, FeatureIdentity, TileSpec
from histotl.embed import device as device_module
from histotl.embed._models import Model, load_models
from histotl.embed._plan import sample_rows
from histotl.embed.config import EmbedConfig, TileConfig
from histotl.embed.device import (
    Forwards,
    choose_forwards,
    choose_precision,
    choose_workers,
    compute_settings,
    largest_batch,
    usable_cores,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CARD = BackboneCard(name="x", dim=2, pooling="avg", input_px=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def model_of(embedder, compute: str = "fp32") -> Model:
    identity = FeatureIdentity.of(embedder.card, None, stain="none", compute=compute, dtype="fp32")
    return Model(spec="x", embedder=embedder, device=CPU, identity=identity)


class Fake:
    """Answers with the mean of each tile, twice, and notes the batch sizes and number formats."""

    card = CARD

    def __init__(self, most: int = 1000) -> None:
        self.most, self.sizes, self.formats = most, [], []

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(tiles))
        if len(tiles) > self.most:
            raise torch.cuda.OutOfMemoryError("too many")
        mean = tiles.float().mean((1, 2, 3))[:, None]
        out = mean @ torch.ones(1, 2)
        self.formats.append(out.dtype)
        return out


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (TileConfig, {"tile_px": 0}),
        (TileConfig, {"overlap_px": 224}),
        (TileConfig, {"mpp": -1.0}),
        (TileConfig, {"min_tissue": 1.5}),
        (TileConfig, {"min_area_um2": -1.0}),
        (TileConfig, {"max_hole_um2": float("nan")}),
        (TileConfig, {"mpp_override": 0.0}),
        (EmbedConfig, {"backbone": ()}),
        (EmbedConfig, {"backbone": "scattering"}),
        (EmbedConfig, {"dtype": "bf16"}),
        (EmbedConfig, {"precision": "half"}),
        (EmbedConfig, {"batch_size": -1}),
        (EmbedConfig, {"workers": -1}),
        (EmbedConfig, {"decode": "gpu"}),
    ],
)
def test_wrong_values_are_refused_with_a_cure(kind, options):
    with pytest.raises(UsageError) as caught:
        kind(**options)
    assert caught.value.hint
    assert next(iter(options)) in caught.value.message


def test_the_spec_holds_what_belongs_to_the_identity():
    tiling = TileConfig(tile_px=96, mpp=1.25, overlap_px=8, min_tissue=0.1, edge="pad", allow_upsampling=True)
    names = [field.name for field in dataclasses.fields(TileSpec)]
    assert [getattr(tiling.spec, name) for name in names] == [getattr(tiling, name) for name in names]


def test_precision():
    fp32_only = dataclasses.replace(CARD, fp32_only=True)
    assert choose_precision("auto", CARD, CPU) == "fp32"
    assert choose_precision("bf16", CARD, CPU) == "bf16"
    assert choose_precision("bf16", fp32_only, CPU) == "fp32"


def test_units_for_bf16_are_none_for_fp16(monkeypatch, caplog):
    for name in ("_is_amx_tile_supported", "_is_amx_fp16_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == "_is_avx512_bf16_supported", raising=False)
    assert choose_precision("bf16", CARD, CPU) == "bf16"
    assert not caplog.records
    assert choose_precision("fp16", CARD, CPU) == "fp16"
    assert "no units for fp16" in caplog.text


def test_precision_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert choose_precision("auto", CARD, GPU) == "bf16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert choose_precision("auto", CARD, GPU) == "fp16"


def test_batches_shrink_with_the_tiles():
    auto = EmbedConfig()
    assert largest_batch(EmbedConfig(batch_size=7), GPU, 224) == 7
    assert largest_batch(auto, GPU, 224) == 1024
    assert largest_batch(auto, GPU, 448) == 256
    assert largest_batch(auto, CPU, 64) == 64
    assert [largest_batch(auto, CPU, 224, forwards) for forwards in (1, 2, 4, 16)] == [64, 32, 16, 16]
    assert largest_batch(EmbedConfig(batch_size=200), CPU, 224, 4) == 200
    assert largest_batch(auto, CPU, 100_000) == 1


@pytest.mark.parametrize(("cores", "gpu", "cpu"), [(1, 1, 1), (2, 1, 1), (16, 8, 4), (64, 8, 8)])
def test_readers_are_few_beside_the_network(monkeypatch, cores, gpu, cpu):
    monkeypatch.setattr(device_module, "usable_cores", lambda: cores)
    assert choose_workers(EmbedConfig(), GPU) == gpu
    assert choose_workers(EmbedConfig(), CPU) == cpu
    assert choose_workers(EmbedConfig(workers=5), CPU) == 5


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_cores_are_those_that_may_be_used():
    assert usable_cores() == len(os.sched_getaffinity(0))


@pytest.fixture
def six_threads(monkeypatch):
    """torch has six threads, on a machine with eight cores."""
    before = torch.get_num_threads()
    monkeypatch.setattr(device_module, "usable_cores", lambda: 8)
    torch.set_num_threads(6)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("six_threads")
def test_settings_come_back():
    seen = []
    with compute_settings(Forwards(threads=3)):
        assert torch.get_num_threads() == 3
        assert torch.backends.cudnn.allow_tf32 is False
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
    assert seen == [3], "threads that begin meanwhile have as many"
    assert torch.get_num_threads() == 6


@pytest.mark.usefixtures("six_threads")
def test_on_a_cpu_every_core_has_a_forward_pass_of_one_thread(monkeypatch):
    assert choose_forwards(EmbedConfig(), CPU, 2) == Forwards(count=6, threads=1)
    monkeypatch.setattr(device_module, "usable_cores", lambda: 3)
    assert choose_forwards(EmbedConfig(), CPU, 2) == Forwards(count=3, threads=1)
    monkeypatch.setattr(device_module, "usable_cores", lambda: 200)
    torch.set_num_threads(200)
    assert choose_forwards(EmbedConfig(), CPU, 8) == Forwards(count=16, threads=1)
    torch.set_num_threads(1)
    assert choose_forwards(EmbedConfig(), CPU, 1) == Forwards(count=1, threads=1)


@pytest.mark.usefixtures("six_threads")
@pytest.mark.parametrize(("policy", "threads"), [("PASSIVE", 6), ("ACTIVE", 3), ("", 3)])
@pytest.mark.parametrize("options", [{"runtime": "openvino"}, {"compile": True}])
def test_a_runtime_with_threads_of_its_own_has_one_forward_pass(monkeypatch, policy, threads, options):
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    assert choose_forwards(EmbedConfig(**options), CPU, 5) == Forwards(count=1, threads=threads)
    assert choose_forwards(EmbedConfig(), CPU, 5, side_by_side=False) == Forwards(count=1, threads=threads)


@pytest.mark.usefixtures("six_threads")
def test_a_gpu_has_one_thread_that_feeds_it():
    assert choose_forwards(EmbedConfig(), GPU, 7) == Forwards(count=1, threads=1)
    assert choose_forwards(EmbedConfig(), GPU, 5) == Forwards(count=1, threads=3)


def test_autocast_is_on_only_where_it_was_chosen():
    fake, tiles = Fake(), torch.full((3, 8, 8, 3), 100, dtype=torch.uint8)
    exact, half = model_of(fake)(tiles), model_of(fake, "bf16")(tiles)
    assert fake.formats == [torch.float32, torch.bfloat16]
    assert exact.dtype == half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=1e-2, atol=0)


def test_a_batch_that_does_not_fit_is_halved(caplog):
    fake = Fake(most=3)
    tiles = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 8, 8, 3)
    features = model_of(fake)(tiles)
    assert features[:, 0].tolist() == list(range(10))
    assert "halves" in caplog.text
    with pytest.raises(SetupError, match="one tile"):
        model_of(Fake(most=0))(tiles)


def test_a_backbone_that_contradicts_its_card_is_an_error():
    fake = Fake()
    fake.card = dataclasses.replace(CARD, dim=3)
    with pytest.raises(HistotlError, match="dim=3"):
        model_of(fake)(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))


def test_fp32_only_cards_are_obeyed_and_it_is_said(caplog):
    config = EmbedConfig(backbone=("color_stats",), precision="bf16")
    (model,) = load_models(config, TileSpec(), stain="none", device=CPU)
    assert isinstance(model.embedder, ColorStatsEmbedder)
    assert model.identity.compute == "fp32"
    assert "color_stats runs in fp32" in caplog.text


def test_two_backbones_for_one_file_are_refused():
    config = EmbedConfig(backbone=("scattering(input_px=64)", "scattering(input_px=96)"))
    with pytest.raises(UsageError, match="features_scattering"):
        load_models(config, TileSpec(), stain="none", device=CPU)


@pytest.mark.parametrize(("n", "wanted"), [(1000, 64), (65, 64), (64, 64), (3, 64), (0, 64), (10, 0)])
def test_the_sample_is_spread_evenly(n, wanted):
    rows = sample_rows(n, wanted)
    assert len(rows) == min(n, wanted) == len(set(rows.tolist()))
    if len(rows):
        assert rows[0] == 0
        assert rows[-1] >= n - -(-n // len(rows))
        assert set(range(n)) >= set(rows.tolist())


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_runtime_in_another_format_or_place_is_refused_before_anything_is_loaded(runtime, monkeypatch):
    monkeypatch.setattr("histotl.embed._models.create", lambda *_: pytest.fail("a backbone was made"))
    for precision in ("bf16", "fp16"):
        with pytest.raises(UsageError, match=f"--runtime {runtime} computes in fp32, not in {precision}") as caught:
            EmbedConfig(runtime=runtime, precision=precision)
        assert "--precision" in caught.value.hint
    assert EmbedConfig(runtime=runtime, precision="fp32").runtime == runtime
    with pytest.raises(UsageError, match=f"--runtime {runtime} runs on a CPU, not on cuda"):
        load_models(EmbedConfig(runtime=runtime), TileSpec(), stain="none", device=GPU)


def test_the_help_says_what_a_batch_is_a_batch_of(capsys):
    from histotl.cli.main import call

    assert call(["embed", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Tiles per forward pass; on a CPU several passes run side by side" in said
