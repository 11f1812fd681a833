"""The engine end to end with networks of random weights, on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.speed import peers
from benchmarks.speed.harness import Case, Figure, case, torch_threads
from benchmarks.speed.inputs import Inputs, planned, resident_tiles
from benchmarks.speed.running import Bare, best_threads, embed, features, load
from benchmarks.speed.sampling import timm_spec
from histotl.embed.config import TileConfig
from histotl.embed.device import usable_cores
from histotl.store import layout
from histotl.wsi.tiles import TileReader

FAST, SECOND = "mobilenetv3_small_100", "mobilenetv3_small_075"
SCATTERING = "scattering"
RESIDENT = 512


def _close_to(found: np.ndarray, wanted: torch.Tensor) -> bool:
    """Features of our file (half precision) and of the bare network, for the tiles that it holds."""
    return np.allclose(found[: len(wanted)], wanted.numpy(), rtol=1e-2, atol=1e-3)


ALL = TileConfig(min_tissue=0)
_BESIDE = "bare, {} forward passes side by side on one thread each: {{}} of its best single one"


def _end_to_end(inputs: Inputs, name: str, slide: Path, tiling: TileConfig = TileConfig()) -> Case:  # noqa: B008 - frozen
    spec, out = timm_spec(name), inputs.folder / f"embedded-{name}"
    first = embed(slide, out, spec, tiling=tiling)
    count, cores = first.n_tiles, usable_cores()
    bare = Bare(spec, name, resident_tiles(slide, tiling, RESIDENT))
    return Case(
        name=f"embed_slides, {name}, {count} tiles of 224 px",
        against=f"bare torch, loading and forward ({bare.form}) on resident float tiles (floor)",
        ours=lambda: embed(slide, out, spec, tiling=tiling).n_tiles,
        reference=lambda: bare.run(count),
        same=lambda tiles, wanted: tiles == count and _close_to(features(out, spec, slide, tiling), wanted),
        goal=1 / 0.95,
        threads=None,
        units=count,
        unit="tiles",
        figures=(
            Figure(text="{} of the bare network's rate", of=lambda s: s.reference / s.ours),
            Figure(text=_BESIDE.format(cores), of=lambda s: bare.side_by_side(count, cores) * s.reference / count),
        ),
    )


@case("embed/mobilenetv3_small_100")
def mobilenet(inputs: Inputs) -> Case:
    """A small CNN: the faster the network, the more the rest of the engine shows."""
    return _end_to_end(inputs, FAST, inputs.large_slide, ALL)


@case("embed/resnet50")
def resnet50(inputs: Inputs) -> Case:
    """A large CNN."""
    return _end_to_end(inputs, inputs.scale.cnn, inputs.end)


@case("embed/vit_small_patch16_224")
def vit_small(inputs: Inputs) -> Case:
    """A transformer."""
    return _end_to_end(inputs, inputs.scale.transformer, inputs.slow)


@case("embed/scattering")
def scattering_slide(inputs: Inputs) -> Case:
    """The default backbone, against its own forward pass."""
    slide, out = inputs.flow, inputs.folder / "embedded-scattering"
    tiles, embedder = resident_tiles(slide, TileConfig()), load(SCATTERING)

    def forward(some: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([embedder(batch) for batch in some.split(32)])

    threads = best_threads(lambda: forward(tiles[:32]))

    def reference() -> torch.Tensor:
        with torch_threads(threads):
            return forward(tiles)

    return Case(
        name=f"embed_slides, scattering, {len(tiles)} tiles of 224 px",
        against=f"its forward pass on resident tiles, {threads} threads, the best of one and all (floor)",
        ours=lambda: embed(slide, out, SCATTERING).n_tiles,
        reference=reference,
        same=lambda _, wanted: _close_to(features(out, SCATTERING, slide), wanted),
        goal=1 / 0.95,
        threads=None,
        figures=(Figure(text="{} tiles/s", of=lambda s: len(tiles) / s.ours, goal=20, more=True),),
    )


@case("embed/trident")
def trident(inputs: Inputs) -> Case:
    """The same network with the same weights in TRIDENT's loop, on the same tiles."""
    slide, out, spec = inputs.end, inputs.folder / "embedded-trident", timm_spec(FAST)
    peer = peers.start(inputs, "TRIDENT")
    embed(slide, out, spec, dtype="fp32")
    exact = np.array(features(out, spec, slide))
    coords = layout.coords_path(out, TileConfig().spec, slide.stem)
    return Case(
        name=f"embed_slides, {FAST}, {len(exact)} tiles of 224 px",
        against="TRIDENT's own extraction of the same tiles, found before; its defaults",
        ours=lambda: embed(slide, out, spec).n_tiles,
        reference=lambda: peer.embed(slide, coords, inputs.folder / "trident-features", FAST),
        same=lambda tiles, file: tiles == len(exact) and peers.agreeing(lambda: exact, file),
        goal=1 / 1.7,
        threads=None,
        units=len(exact),
        unit="tiles",
        figures=(Figure(text="theirs {} tiles/s", of=lambda s: len(exact) / s.reference),),
        close=peer.worker.close,
    )


@case("embed/stain")
def stain(inputs: Inputs) -> Case:
    """What normalising costs in a run: a fit for the slide, and a colour function for every pixel."""
    return normalised(inputs.large_slide, inputs.folder, FAST, ALL)


def normalised(slide: Path, folder: Path, network: str, tiling: TileConfig, device: str = "cpu") -> Case:
    """A run with macenko beside the same without."""
    spec, out = timm_spec(network), folder / f"stain-{device.partition(':')[0]}"

    def run(stain: str) -> int:
        return embed(slide, out / stain, spec, tiling=tiling, stain=stain, device=device).n_tiles

    def differ() -> bool:
        plain, normal = (features(out / stain, spec, slide, tiling) for stain in ("none", "macenko"))
        return bool((plain != normal).any(axis=1).mean() > 0.9)

    count = run("none")
    return Case(
        name=f"embed_slides with --stain macenko, {network} on {device}, {count} tiles",
        against="the same with --stain none",
        ours=lambda: run("macenko"),
        reference=lambda: run("none"),
        same=lambda a, b: a == b == count and differ(),
        goal=None if device == "cpu" else 1.02,
        threads=None,
        units=count,
        unit="tiles",
        figures=(Figure(text="{} ms more a tile", of=lambda s: (s.ours - s.reference) / count * 1e3),),
    )


@case("embed/two-backbones")
def two_backbones(inputs: Inputs) -> Case:
    """One pass for both."""
    slide, out, names = inputs.large_slide, inputs.folder / "both", (FAST, SECOND)
    specs = [timm_spec(name) for name in names]
    embed(slide, out, *specs, tiling=ALL)
    tiles = resident_tiles(slide, ALL, RESIDENT)
    bare = [Bare(spec, name, tiles) for spec, name in zip(specs, names, strict=True)]
    opened, grid = planned(slide, ALL)

    def forwards_and_read() -> list[torch.Tensor]:
        with TileReader(opened, grid) as reader:
            for start in range(0, len(grid), 64):
                reader.read(slice(start, start + 64))
        return [net.run(len(grid)) for net in bare]

    return Case(
        name=f"embed_slides, {FAST} and {SECOND} in one pass, {len(grid)} tiles",
        against="the sum of their bare networks, and reading the tiles once (floor)",
        ours=lambda: embed(slide, out, *specs, tiling=ALL).n_tiles,
        reference=forwards_and_read,
        same=lambda _, wanted: all(
            _close_to(features(out, spec, slide, ALL), made) for spec, made in zip(specs, wanted, strict=True)
        ),
        goal=1.05,
        threads=None,
        close=opened.close,
    )


@case("embed/biopsies")
def biopsies(inputs: Inputs) -> Case:
    """What a slide of a few hundred tiles costs beside these."""
    return _many_or_one(inputs, inputs.biopsies, inputs.biopsies_together, inputs.scale.biopsies_together, 1 / 0.95)


@case("embed/small-slides")
def small_slides(inputs: Inputs) -> Case:
    """The same of half as many tiles."""
    return _many_or_one(inputs, inputs.small_slides, inputs.large_slide, inputs.scale.large_tiles, 1 / 0.95)


@case("embed/tiny-slides")
def tiny_slides(inputs: Inputs) -> Case:
    """The same where a slide is gone in a tenth of a second."""
    return _many_or_one(inputs, inputs.tiny_slides, inputs.tiny_together, inputs.scale.tiny_together, None)


def _many_or_one(inputs: Inputs, many: Path, one: Path, columns_rows: tuple[int, int], goal: float | None) -> Case:
    spec, count, tiles = timm_spec(FAST), inputs.scale.small_slides, int(np.prod(columns_rows))
    return Case(
        name=f"embed_slides, {count} slides of {tiles // count} tiles, {FAST}",
        against=f"one slide of {tiles} tiles",
        ours=lambda: embed(many, inputs.folder / f"of-{many.name}", spec, tiling=ALL).n_tiles,
        reference=lambda: embed(one, inputs.folder / f"of-{one.stem}", spec, tiling=ALL).n_tiles,
        same=lambda a, b: a == b == tiles,
        goal=goal,
        threads=None,
        units=tiles,
        unit="tiles",
        figures=(Figure(text="{} ms more a slide", of=lambda s: (s.ours - s.reference) / (count - 1) * 1e3, goal=50),),
    )


@case("backbone/scattering")
def scattering_batch(inputs: Inputs) -> Case:
    """The default backbone beside one of the fastest networks there are."""
    tiles, embedders = inputs.batch, {spec: load(spec) for spec in (SCATTERING, timm_spec(FAST))}

    def forward(spec: str) -> torch.Tensor:
        with torch.inference_mode():
            return embedders[spec](tiles)

    return Case(
        name="scattering, tiles of 224 px, one thread",
        against=f"{FAST} on the same tiles",
        ours=lambda: forward(SCATTERING),
        reference=lambda: forward(timm_spec(FAST)),
        same=lambda a, b: len(a) == len(b),
        units=len(tiles),
        unit="tiles",
    )
