"""Everything but the network: a backbone that costs nothing, against the loops of other tools with the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.speed import peers
from benchmarks.speed.harness import Case, Figure, Sides, case
from benchmarks.speed.inputs import Inputs, JpegTiles, decode_all, planned
from benchmarks.speed.running import embed, features
from benchmarks.speed.sampling import sample_spec
from histotl.core.values import TileGrid
from histotl.embed.config import TileConfig
from histotl.store import layout


def _grid(path: Path) -> TileGrid:
    slide, grid = planned(path, TileConfig())
    slide.close()
    return grid


def _rates(tiles: int) -> tuple[Figure, ...]:
    def a_core(sides: Sides) -> float:
        return tiles / sides.ours_cpu

    return (
        Figure(text="{} tiles/s", of=lambda s: tiles / s.ours),
        Figure(text="{} tiles a CPU second", of=a_core, goal=1500, more=True),
    )


@case("flow/decode")
def decode(inputs: Inputs) -> Case:
    """Open, tissue, pictures, coordinates, reading, normalising, filing; against decoding as many pixels."""
    grid, spec = _grid(inputs.flow), sample_spec(inputs.folder)
    files = JpegTiles(inputs.flow)
    area = grid.footprint_l0[0] * grid.footprint_l0[1] * len(grid)
    data = files.spread(files.under(grid.coords_l0, grid.footprint_l0), area)
    return Case(
        name=f"embed_slides without a network, {len(grid)} tiles of 224 px",
        against="libjpeg-turbo decode of as many pixels, one thread (floor)",
        ours=lambda: embed(inputs.flow, inputs.folder / "flow", spec).n_tiles,
        reference=lambda: decode_all(data),
        same=lambda tiles, _: tiles == len(grid),
        threads=None,
        figures=_rates(len(grid)),
    )


def _against(inputs: Inputs, name: str) -> Case:
    slide, out, spec = inputs.flow, inputs.folder / f"flow-{name}", sample_spec(inputs.folder)
    peer = peers.start(inputs, name)
    embed(slide, out, spec, dtype="fp32")
    exact = np.array(features(out, spec, slide))
    coords = layout.coords_path(out, TileConfig().spec, slide.stem)
    return Case(
        name=f"embed_slides without a network, {len(exact)} tiles of 224 px",
        against=f"{name}'s own loop on the same tiles, found before; its defaults",
        ours=lambda: embed(slide, out, spec).n_tiles,
        reference=lambda: peer.embed(slide, coords, inputs.folder / f"flow-features-{name}", "sample"),
        same=lambda tiles, file: tiles == len(exact) and peers.agreeing(lambda: exact, file),
        goal=1 / 4,
        threads=None,
        figures=(
            *_rates(len(exact)),
            Figure(text="theirs {} tiles/s", of=lambda s: len(exact) / s.reference),
            Figure(text="theirs {} tiles a CPU second", of=lambda s: len(exact) / s.reference_cpu),
        ),
        close=peer.worker.close,
    )


@case("flow/trident")
def trident(inputs: Inputs) -> Case:
    """Its loop alone: opening is in, finding tissue is not; ours has everything in."""
    return _against(inputs, "TRIDENT")


@case("flow/clam")
def clam(inputs: Inputs) -> Case:
    """Likewise."""
    return _against(inputs, "CLAM")
