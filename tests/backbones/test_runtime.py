"""Other runtimes: the same features or an error with the figures; every lack has its cure."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from histotl.backbones import _exported
from histotl.backbones._network import NetworkEmbedder, finish
from histotl.backbones._runtime import accelerate, runtime_of
from histotl.backbones.base import Embedder
from histotl.core.errors import MissingDependencyError, SetupError, UsageError
from histotl.core.registry import create
from histotl.core.values import BackboneCard

CPU = torch.device("cpu")
EXTRAS = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} not installed"))
    for name in ("onnxruntime", "openvino")
]


def small() -> NetworkEmbedder:
    """A convolution with batch norm, and a classifier: what runtimes fold and fuse."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    nn.init.uniform_(module[1].running_mean)  # type: ignore[arg-type]
    card = BackboneCard(name="x", dim=0, pooling="none", input_px=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    return finish(module, module, card, CPU, arguments={})


def use(embedder: Embedder, runtime: Any, **more: Any) -> Embedder:
    return accelerate(embedder, runtime, **{"batch_size": 3, "threads": 1, "device": CPU, **more})


def check(embedder: NetworkEmbedder, other: Embedder, tiles: torch.Tensor, runtime: str) -> None:
    assert other.card == embedder.card
    assert (runtime_of(embedder), runtime_of(other)) == ("torch", runtime)
    with torch.inference_mode():
        wanted, got = embedder(tiles), other(tiles)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(torch.cat([other(part) for part in tiles.split(2)]), got), "features depend on the batch"
        kept = got.clone()
        other(tiles.flip(0))
        assert torch.equal(got, kept), "features were overwritten by the next batch"
        assert other(tiles[:0]).shape == (0, embedder.card.dim)


@pytest.mark.parametrize("runtime", EXTRAS)
@pytest.mark.parametrize("model", ["test_vit", "test_byobnet"])
def test_features_are_those_of_torch(runtime: str, model: str, tiles: torch.Tensor) -> None:
    embedder = create("backbone", f"timm/{model}(weights='random', pooling='avg', input_px=160)").load(CPU)
    check(embedder, use(embedder, runtime), tiles, runtime)


def test_torch_is_the_embedder_itself() -> None:
    for embedder in (small(), create("backbone", "scattering").load(CPU)):
        assert use(embedder, "torch") is embedder
        assert runtime_of(embedder) == "torch"


def run_apart(code: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "HOME": str(home), "TORCHINDUCTOR_CACHE_DIR": str(home / "cache"), **environment}
    variables["PYTHONPATH"] = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", code], env=variables, cwd=home, capture_output=True, text=True, timeout=280, check=False
    )


HEAD = f"""
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("cases", {__file__!r})
cases = importlib.util.module_from_spec(spec)
sys.modules["cases"] = cases
spec.loader.exec_module(cases)
"""


@pytest.mark.slow
def test_compiled_features_are_those_of_torch(tmp_path: Path) -> None:
    code = """
embedder = cases.small()
tiles = torch.randint(0, 256, (5, 20, 20, 3), dtype=torch.uint8)
other = cases.use(embedder, "compile")
with torch._dynamo.config.patch(error_on_recompile=True):
    cases.check(embedder, other, tiles, "compile")
with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
    half = cases.use(embedder, "compile", half=torch.bfloat16)(tiles)
    assert (half - embedder(tiles)).norm() / half.norm() < 0.02
"""
    done = run_apart(HEAD + code, tmp_path)
    if "no working C++ compiler" in done.stderr:
        pytest.skip("no C++ compiler")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_without_a_compiler_it_ends_at_the_start(tmp_path: Path) -> None:
    code = """
from histotl.core.errors import SetupError
try:
    cases.use(cases.small(), "compile")
except SetupError as error:
    assert "no working C++ compiler" in error.message, error
    assert "install a C++ compiler" in error.hint and "--runtime torch" in error.hint, error
else:
    raise SystemExit("it compiled")
"""
    done = run_apart(HEAD + code, tmp_path, CXX="/no/such/compiler")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino not installed")
def test_openvino_reports_nothing_home(tmp_path: Path) -> None:
    code = """
cases.use(cases.small(), "openvino")
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
"""
    done = run_apart(HEAD + code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_missing_library_is_named(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, runtime, None)
    with pytest.raises(MissingDependencyError, match=f"{runtime} cannot be imported") as caught:
        use(small(), runtime)
    assert f"pip install 'histotl[{runtime}]'" in caught.value.hint


@pytest.mark.parametrize("runtime", ["compile", "onnxruntime", "openvino"])
def test_only_networks_can_be_given_away(runtime: str) -> None:
    with pytest.raises(UsageError, match="scattering is no network") as caught:
        use(create("backbone", "scattering").load(CPU), runtime)
    # The flag that was typed: there is no --runtime compile.
    flag, cure = {"compile": ("--compile", "leave out --compile")}.get(
        runtime, (f"--runtime {runtime}", "use --runtime torch")
    )
    assert flag in caught.value.message
    assert caught.value.hint == cure


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("more", [{"device": torch.device("cuda", 1)}, {"half": torch.bfloat16}], ids=["cuda", "bf16"])
def test_optional_libraries_run_on_a_cpu_in_fp32(runtime: str, more: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"runs on a CPU in fp32, not on (cuda:1 in fp32|cpu in bfloat16)"):
        use(small(), runtime, **more)


def test_a_wrong_name() -> None:
    with pytest.raises(UsageError, match="runtime is 'tensorrt'") as caught:
        use(small(), "tensorrt")
    assert "onnxruntime" in caught.value.hint


def stand_in(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    """A builder of a runtime whose features are changed ones of torch."""
    return lambda whole, *_: lambda tiles: change(whole(tiles))


WRONG: list[tuple[Callable[[torch.Tensor], torch.Tensor], str]] = [
    (lambda y: y * 1.01, r"cosine 1\.000000, relative difference 1\.0e-02"),
    (lambda y: y.flip(1), "gives other features than torch"),
    (lambda y: y * float("nan"), "cosine nan"),
    (lambda y: y[:, :3], r"gives shape \(3, 3\), torch \(3, 32\)"),
]


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_other_features_are_refused_with_figures(
    change: Callable[[torch.Tensor], torch.Tensor], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_exported, "in_onnxruntime", stand_in(change))
    with pytest.raises(SetupError, match=said) as caught:
        use(small(), "onnxruntime")
    assert caught.value.hint == "use --runtime torch"


def test_small_differences_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_exported, "in_onnxruntime", stand_in(lambda y: y * 1.0005))
    assert runtime_of(use(small(), "onnxruntime")) == "onnxruntime"


class Untraceable(nn.Module):
    """Leaves torch, so no tracer can follow."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_tracing():
            raise NotImplementedError("not while tracing")
        return images.mean((2, 3))


@pytest.mark.parametrize("runtime", EXTRAS)
def test_a_network_that_cannot_be_converted(runtime: str) -> None:
    card = BackboneCard(name="odd", dim=0, pooling="none", input_px=16, mean=(0.5,) * 3, std=(0.2,) * 3)
    module = Untraceable()
    embedder = finish(module, module, card, CPU, arguments={})
    root = logging.getLogger()
    before = root.level, list(root.handlers), list(root.filters)
    with pytest.raises(SetupError, match="odd cannot be") as caught:
        use(embedder, runtime)
    assert caught.value.hint == "use --runtime torch"
    assert (root.level, root.handlers, root.filters) == before, "warnings of the program would be silent from now on"
