"""The GPU kernels of the stain transforms: in Triton's interpreter, and compiled for a GPU without having one."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from histotl.image import _device
from histotl.image._planes import map_planes
from histotl.image._transforms import LabTransform, LevelTransform, OdTransform
from histotl.image.augment.hed_jitter import HedJitter
from histotl.image.stain.base import FusedTransform, StainTransform

NO_TRITON = "the kernels are in Triton, which torch for this system does not bring"
MATRIX = ((1.12, -0.08, 0.05), (0.03, 0.85, -0.02), (-0.1, 0.2, 1.3))
BEFORE, AFTER = (225.0, 220.5, 228.0), (250.0, 246.0, 239.5)
RISING = tuple(255 * (level / 255) ** 0.7 for level in range(256))
TRANSFORMS = [
    OdTransform(matrix=MATRIX, state={}),
    OdTransform(matrix=MATRIX, state={}, offset=(-0.12, 0.03, -0.05)),
    LabTransform(gain=(1.2, 0.8, 1.4), shift=(-6.0, 4.0, -2.0), state={}),
    LabTransform(gain=(1.2, 0.8, 1.4), shift=(-6.0, 4.0, -2.0), state={}, white=BEFORE, glass=AFTER),
    LevelTransform(tables=(RISING, RISING[::-1], RISING), state={}),
]


@pytest.fixture(scope="module")
def colours() -> torch.Tensor:
    """Random colours, grey and black and white among them; not a whole number of blocks: uint8 (3, 71, 61, 3)."""
    tiles = np.random.default_rng(3).integers(0, 256, (3, 71, 61, 3), dtype=np.uint8)
    tiles[0, :8, :32] = np.arange(256, dtype=np.uint8).reshape(8, 32, 1)
    return torch.from_numpy(tiles)


@pytest.mark.usefixtures("gpu_kernels")
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_a_kernel_gives_what_torch_gives(transform: StainTransform, colours: torch.Tensor) -> None:
    ours, plain = transform(colours).int(), map_planes(colours, transform.on_planes).int()
    assert (ours - plain).abs().max() <= 1
    assert (ours != plain).float().mean() < 2e-3
    assert (ours != colours.int()).float().mean() > 0.5  # it does something
    levels = transform(colours, dtype=torch.float32)
    exact = map_planes(colours, transform.on_planes, dtype=torch.float32)
    # Single precision; the linear light of saturated cyans cancels to a thousandth of itself.
    assert (levels - exact).abs().max() < (5e-3 if isinstance(transform, LabTransform) else 1e-3)


@pytest.mark.usefixtures("gpu_kernels")
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (1, 1, 1, 3), (2, 7, 5, 3)])
def test_any_shape_and_order_of_memory(transform: StainTransform, shape: tuple[int, ...]) -> None:
    tiles = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    planar = tiles.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(transform(tiles), transform(planar))
    assert transform(tiles).shape == tiles.shape
    assert torch.equal(transform(tiles), torch.cat([transform(tiles[:1]), transform(tiles[1:])]))


@pytest.mark.usefixtures("gpu_kernels")
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_network_s_input_is_written_in_the_same_pass(
    transform: StainTransform, colours: torch.Tensor, dtype: torch.dtype
) -> None:
    """Of levels rounded as those that are stored, so that features are those of two passes."""
    scale, shift = (0.017, 0.018, 0.019), (-2.1, -2.0, -1.8)
    assert isinstance(transform, FusedTransform)
    assert transform.is_fused(colours)
    found = transform.prepared(colours, scale=scale, shift=shift, dtype=dtype)
    wanted = transform(colours).float() * torch.tensor(scale) + torch.tensor(shift)
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted.to(dtype), rtol=1e-6 if dtype == torch.float32 else 1e-3, atol=1e-6)


@pytest.mark.usefixtures("gpu_kernels")
def test_white_stays_white_and_what_is_brighter_is_white_and_not_black() -> None:
    white = torch.full((1, 4, 4, 3), 255, dtype=torch.uint8)
    assert torch.equal(OdTransform(matrix=MATRIX, state={})(white), white)
    brighter = OdTransform(matrix=((-80.0, 0, 0), (0, 1.0, 0), (0, 0, 80.0)), state={})
    assert brighter(torch.full((1, 4, 4, 3), 10, dtype=torch.uint8))[0, 0, 0].tolist() == [255, 10, 0]


@pytest.mark.usefixtures("gpu_kernels")
def test_every_tile_has_its_own_jitter(colours: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    jitter, seeds = HedJitter(), torch.tensor([5, 6, 7])
    ours = jitter(colours, seeds).int()
    assert (jitter(colours[1:], seeds[1:]).int() == ours[1:]).all()
    monkeypatch.setattr(_device, "has_kernels", lambda tiles: False)
    plain = jitter(colours, seeds).int()
    assert (ours - plain).abs().max() <= 1
    assert (ours != plain).float().mean() < 2e-3


_COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from histotl.image import _kernels

numbers = {
    "restain": {"weights": "*fp32", "per_tile": "i32"},
    "relight": dict.fromkeys(("light", "before", "change", "after"), "*fp32"),
    "retable": {"table": "*fp32"},
}
for name, own in numbers.items():
    for kind in ("u8", "fp32", "fp16"):
        signature = {"tiles": "*u8", "out": f"*{kind}", "affine": "*fp32", **own, "pixels": "i32"}
        settings = {"rounded": kind != "fp32", "block": 1024}
        signature |= dict.fromkeys(settings, "constexpr")
        source = ASTSource(fn=getattr(_kernels, name), signature=signature, constexprs=settings)
        made = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": True})
        print(name, kind, len(made.asm["cubin"]) > 0)
"""


def test_the_kernels_compile_for_a_gpu(tmp_path) -> None:
    """What the interpreter accepts a compiler may refuse; it needs no GPU to say so."""
    pytest.importorskip("triton", reason=NO_TRITON)
    made = subprocess.run(
        [sys.executable, "-c", _COMPILE],
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.split() == [
        word
        for name in ("restain", "relight", "retable")
        for kind in ("u8", "fp32", "fp16")
        for word in (name, kind, "True")
    ]


def test_without_kernels_it_is_said_why_and_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason=NO_TRITON)

    def fails(*args: object, **how: object) -> None:
        raise RuntimeError("Failed to find C compiler\nsecond line")

    monkeypatch.setattr(_device, "restained", fails)
    _device._has_kernels.cache_clear()
    try:
        assert not _device._has_kernels(torch.device("cpu"))
        assert not _device._has_kernels(torch.device("cpu"))
    finally:
        _device._has_kernels.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "stain normalisation takes several GPU kernels instead of one: Failed to find C compiler; "
        "it takes a C compiler and Python's headers (gcc, python3-dev) and a TRITON_CACHE_DIR to write"
    ]


@pytest.mark.usefixtures("gpu_kernels")
def test_with_kernels_nothing_is_said() -> None:
    assert _device.why_no_kernels(torch.device("cpu")) == ""
