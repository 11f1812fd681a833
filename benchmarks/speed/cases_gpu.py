"""One CUDA GPU, from the file to the features. Without one these cases are listed as not measured."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
import simplejpeg
import torch

from benchmarks.speed.cases_embed import normalised
from benchmarks.speed.harness import Case, Figure, NotMeasured, case
from benchmarks.speed.inputs import Inputs, JpegTiles, planned, resident_tiles
from benchmarks.speed.running import load
from benchmarks.speed.sampling import timm_spec
from histotl.backbones._network import NetworkEmbedder
from histotl.backbones._preprocess import prepare
from histotl.embed.config import EmbedConfig, TileConfig
from histotl.embed.engine import embed_slides
from histotl.embed.summary import RunSummary

_BATCH, _RESIDENT = 256, 2048
_DECODED = 1024


def _gpu() -> torch.device:
    if not torch.cuda.is_available():
        raise NotMeasured("needs a CUDA GPU")
    return torch.device("cuda", 0)


def _bare(spec: str, tiles: torch.Tensor, device: torch.device) -> Callable[[int], torch.Tensor]:
    """The network alone on resident prepared batches, in the engine's number format, channels-last."""
    embedder = cast("NetworkEmbedder", load(spec, device))
    half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    batches = [prepare(part.to(device), embedder.card) for part in tiles.split(_BATCH)]

    def run(count: int) -> torch.Tensor:
        made, done = [], 0
        with torch.inference_mode(), torch.autocast("cuda", half):
            while done < count:
                for batch in batches:
                    made.append(embedder.forward(batch[: count - done]))
                    done += len(made[-1])
                    if done >= count:
                        break
        torch.cuda.synchronize(device)
        return torch.cat(made)[: len(tiles)].float().cpu()

    return run


def _busy(summary: RunSummary) -> float:
    if summary.telemetry is None:
        raise RuntimeError("the run says nothing about its time")
    return summary.telemetry.device_busy


def _from_disk(inputs: Inputs, name: str) -> Case:
    device = _gpu()
    slide, spec, out = inputs.huge, timm_spec(name), inputs.folder / f"gpu-{name}"
    opened, grid = planned(slide, TileConfig())
    opened.close()
    bare = _bare(spec, resident_tiles(slide, TileConfig(), _RESIDENT), device)
    last: list[RunSummary] = []

    def ours() -> int:
        config = EmbedConfig(backbone=(spec,), device=str(device), quality="none", overwrite=True)
        last[:] = [embed_slides(slide, out, config=config)]
        if last[0].failed:
            raise RuntimeError(str(last[0].failed[0]))
        return last[0].n_tiles

    return Case(
        name=f"embed_slides on the GPU, {name}, {len(grid)} tiles from disk",
        against="bare forward on resident batches of 256, half precision, channels-last (floor)",
        ours=ours,
        reference=lambda: bare(len(grid)),
        same=lambda tiles, _: tiles == len(grid),
        goal=1 / 0.9,
        threads=None,
        units=len(grid),
        unit="tiles",
        figures=(
            Figure(text="{} of the bare network's rate", of=lambda s: s.reference / s.ours),
            Figure(text="GPU busy {} of the run", of=lambda _: _busy(last[0])),
        ),
    )


@case("gpu/resnet50")
def resnet50(inputs: Inputs) -> Case:
    """A large CNN."""
    return _from_disk(inputs, "resnet50")


@case("gpu/vit_small_patch16_224")
def vit_small(inputs: Inputs) -> Case:
    """The hardest to feed."""
    return _from_disk(inputs, "vit_small_patch16_224")


@case("gpu/vit_large_patch16_224")
def vit_large(inputs: Inputs) -> Case:
    """What foundation models look like."""
    return _from_disk(inputs, "vit_large_patch16_224")


@case("gpu/stain")
def stain(inputs: Inputs) -> Case:
    """Normalising is to cost nothing that can be measured."""
    return normalised(inputs.huge, inputs.folder, "resnet50", TileConfig(), str(_gpu()))


@case("gpu/decode")
def decode(inputs: Inputs) -> Case:
    """All cores decoding into host memory, and copying; against nvJPEG through torchvision."""
    device = _gpu()
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError as error:
        raise NotMeasured(f"nvJPEG needs torchvision: {error}") from error
    files = JpegTiles(inputs.huge)
    data = files.fetch(range(min(_DECODED, len(files.offsets))))
    flat = [torch.frombuffer(bytearray(tile), dtype=torch.uint8) for tile in data]
    host = torch.empty((len(data), files.side, files.side, 3), dtype=torch.uint8, pin_memory=True)
    views = list(host.numpy())
    pool = ThreadPoolExecutor(os.cpu_count() or 1)

    def part(places: np.ndarray) -> None:
        for place in places.tolist():
            simplejpeg.decode_jpeg(data[place], buffer=views[place])

    def ours() -> torch.Tensor:
        list(pool.map(part, np.array_split(np.arange(len(data)), 4 * (os.cpu_count() or 1))))
        moved = host.to(device, non_blocking=True)
        torch.cuda.synchronize(device)
        return moved

    def nvjpeg() -> torch.Tensor:
        made = torch.stack(decode_jpeg(flat, mode=ImageReadMode.RGB, device=device))
        torch.cuda.synchronize(device)
        return made

    def near(a: torch.Tensor, b: torch.Tensor) -> bool:
        return float((a.permute(0, 3, 1, 2).float() - b.float()).abs().mean()) < 2

    return Case(
        name=f"decode {len(data)} JPEG tiles on {os.cpu_count()} cores, and copy",
        against="nvJPEG",
        ours=ours,
        reference=nvjpeg,
        same=near,
        threads=None,
        units=len(data),
        unit="tiles",
        close=pool.shutdown,
    )
