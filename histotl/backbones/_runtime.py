"""A loaded network is handed to another runtime, and checked against torch before it may work."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Literal, get_args

import torch

from histotl.backbones._network import Forward, NetworkEmbedder
from histotl.backbones._preprocess import fit, row_affine
from histotl.backbones.base import Embedder
from histotl.core.errors import SetupError, UsageError
from histotl.core.values import BackboneCard

Runtime = Literal["torch", "compile", "onnxruntime", "openvino"]
Run = Callable[[torch.Tensor], torch.Tensor]
"""From uint8 (batch, s, s, 3) of one fixed shape to float (batch, dim)."""

LEAST_COSINE, MOST_DIFFERENCE = 0.9999, 1e-3
"""Of a runtime's features against torch's, in fp32: cosine, and L2 norm of the difference over that of torch's."""

_HALF_COSINE, _HALF_DIFFERENCE = 0.999, 5e-2
_BACK = "use --runtime torch"


class WholeNetwork(torch.nn.Module):
    """Normalising and the network in one module, so that a runtime can fuse them.

    Args:
        embedder: Gives the network, its pooling and the card.
        device: Where it runs.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, embedder: NetworkEmbedder, device: torch.device) -> None:
        super().__init__()
        self.network = embedder.module
        self.run: Forward = embedder.forward
        scale, shift = row_affine(embedder.card.mean, embedder.card.std, 1, device)
        self.register_buffer("scale", scale.view(1, 3, 1, 1).clone())
        self.register_buffer("shift", shift.view(1, 3, 1, 1).clone())

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """From uint8 (b, s, s, 3) to float32 (b, dim)."""
        images = tiles.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.shift
        return self.run(images).to(torch.float32)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RuntimeEmbedder:
    """A network in a runtime that was built for one batch size.

    Args:
        card: What it is.
        runtime: What runs it.
        batch_size: Smaller batches are padded to it, larger ones are cut up.
        run: The network for exactly this many tiles of the card's size.
        lock: Runtimes keep one set of buffers.
    """

    card: BackboneCard
    runtime: str
    batch_size: int
    run: Run
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Embed uint8 RGB (b, h, w, 3) into float32 (b, dim)."""
        fitted = fit(tiles, self.card).contiguous()
        with self.lock:
            parts = [self._run_padded(part) for part in torch.split(fitted, self.batch_size) if len(part)]
        if not parts:
            return torch.zeros(0, self.card.dim, device=tiles.device)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _run_padded(self, tiles: torch.Tensor) -> torch.Tensor:
        missing = self.batch_size - len(tiles)
        if not missing:
            return self.run(tiles)
        return self.run(torch.cat([tiles, tiles.new_zeros(missing, *tiles.shape[1:])]))[: len(tiles)]


def accelerate(
    embedder: Embedder,
    runtime: Runtime,
    *,
    batch_size: int,
    threads: int,
    device: torch.device,
    half: torch.dtype | None = None,
) -> Embedder:
    """Let another runtime run a loaded network.

    Args:
        embedder: As its backbone loaded it.
        runtime: ``torch`` gives it back unchanged; ``compile`` is torch's compiler; ``onnxruntime`` and ``openvino``
            are optional libraries for CPUs.
        batch_size: Tiles per call; the network is built for this number.
        threads: CPU threads of the network.
        device: Where the embedder is.
        half: Format of the autocast that calls will be under, None for fp32; only ``compile`` knows it.

    Raises:
        UsageError: This runtime cannot run such a backbone, device or format.
        MissingDependencyError: Its library is not installed.
        SetupError: It cannot take this network, lacks a compiler, or gives other features than torch.
    """
    if runtime not in get_args(Runtime):
        raise UsageError(f"runtime is {runtime!r}", hint=f"give one of: {', '.join(get_args(Runtime))}")
    if runtime == "torch":
        return embedder
    card = embedder.card
    if not isinstance(embedder, NetworkEmbedder):
        if runtime == "compile":
            raise UsageError(f"{card.name} is no network that --compile could compile", hint="leave out --compile")
        raise UsageError(f"{card.name} is no network that --runtime {runtime} could run", hint=_BACK)
    if runtime != "compile" and (device.type != "cpu" or half is not None):
        format_ = str(half).removeprefix("torch.") if half is not None else "fp32"
        fact = f"--runtime {runtime} runs on a CPU in fp32, not on {device} in {format_}"
        raise UsageError(fact, hint=f"{_BACK}, or --device cpu --precision fp32")
    # Here, because it knows torch's compiler and the libraries, and most runs need none of them.
    from histotl.backbones import _exported

    build = {"compile": _exported.compiled, "onnxruntime": _exported.in_onnxruntime, "openvino": _exported.in_openvino}
    example = _example(batch_size, card.input_px, device)
    with torch.inference_mode(), torch.autocast(device.type, dtype=half, enabled=half is not None):
        run = build[runtime](WholeNetwork(embedder, device).eval(), example, card.name, threads)
        other = RuntimeEmbedder(card=card, runtime=runtime, batch_size=batch_size, run=run)
        _check_features(other(example), embedder(example), f"{card.name} in {runtime}", half=half is not None)
    return other


def runtime_of(embedder: Embedder) -> str:
    """What runs an embedder; ``torch`` unless it says something else."""
    return str(getattr(embedder, "runtime", "torch"))


def _example(batch_size: int, side: int, device: torch.device) -> torch.Tensor:
    """Tiles of smooth colour with noise, uint8 (batch_size, side, side, 3); the same at every call."""
    generator = torch.Generator().manual_seed(0)
    # Outside inference mode, because a tracer keeps what it saw.
    with torch.inference_mode(mode=False):
        coarse = torch.rand(batch_size, 3, 4, 4, generator=generator) * 200
        smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
        noisy = smooth + 55 * torch.rand(smooth.shape, generator=generator)
        return noisy.permute(0, 2, 3, 1).to(torch.uint8).contiguous().to(device)


def _check_features(got: torch.Tensor, wanted: torch.Tensor, what: str, *, half: bool) -> None:
    least, most = (_HALF_COSINE, _HALF_DIFFERENCE) if half else (LEAST_COSINE, MOST_DIFFERENCE)
    if got.shape != wanted.shape:
        raise SetupError(f"{what} gives shape {tuple(got.shape)}, torch {tuple(wanted.shape)}", hint=_BACK)
    a, b = got.to(torch.float64), wanted.to(torch.float64)
    cosine = float(torch.nn.functional.cosine_similarity(a, b).min())
    difference = float(((a - b).norm(dim=1) / b.norm(dim=1).clamp_min(1e-12)).max())
    # Written so that a NaN is refused too.
    if not (cosine >= least and difference <= most):
        fact = f"{what} gives other features than torch: cosine {cosine:.6f}, relative difference {difference:.1e}"
        raise SetupError(f"{fact}; allowed are {least} and {most:.0e}", hint=_BACK)
