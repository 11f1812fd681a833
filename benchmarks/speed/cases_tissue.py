"""All that happens to a slide before its first tile is read."""

from __future__ import annotations

from contextlib import ExitStack

import tifffile

from benchmarks.speed import peers
from benchmarks.speed.harness import Case, Figure, NotMeasured, case
from benchmarks.speed.inputs import TILE_PX, Inputs, JpegTiles, decode_all, planned
from histotl.embed.config import TileConfig
from histotl.embed.device import Forwards, compute_settings

_LEAST_PX = 20_000
"""Side of a slide on which the smallest tissue that other tools keep by default is small."""


def _plan(inputs: Inputs) -> int:
    slide, grid = planned(inputs.huge, TileConfig())
    slide.close()
    return len(grid)


@case("tissue/mask-and-grid")
def mask_and_grid(inputs: Inputs) -> Case:
    """Open, tissue mask, grid."""
    with tifffile.TiffFile(inputs.huge) as tif:
        level = len(tif.series[0].levels) - 1
    files = JpegTiles(inputs.huge, level)
    data = files.fetch(range(len(files.offsets)))
    settings = ExitStack()
    settings.enter_context(compute_settings(Forwards()))  # as in a run
    return Case(
        name=f"open, tissue mask, grid of {inputs.scale.huge_px}² px",
        against=f"libjpeg-turbo decode of the level it looks at ({len(data)} JPEG tiles, floor)",
        ours=lambda: _plan(inputs),
        reference=lambda: decode_all(data),
        same=lambda tiles, _: tiles > 0,
        goal=2.0,
        close=settings.close,
    )


def _against(inputs: Inputs, name: str, against: str, goal: float | None) -> Case:
    if inputs.scale.huge_px < _LEAST_PX:
        raise NotMeasured("other tools drop tissue as small as that of a tiny slide")
    peer = peers.start(inputs, name)
    tiles = {"ours": _plan(inputs), "theirs": 0}

    def comparable(ours: int, theirs: int) -> bool:
        tiles["theirs"] = theirs
        return 2 / 3 < ours / max(1, theirs) < 3 / 2

    return Case(
        name=f"open, tissue mask, grid of {inputs.scale.huge_px}² px",
        against=against,
        ours=lambda: _plan(inputs),
        reference=lambda: peer.segment(inputs.huge, inputs.folder / f"segmented-{name}", TILE_PX),
        same=comparable,
        goal=goal,
        threads=None,
        figures=(
            Figure(text="{} tiles of ours", of=lambda _: tiles["ours"]),
            Figure(text="{} of theirs", of=lambda _: tiles["theirs"]),
        ),
        close=peer.worker.close,
    )


@case("tissue/clam")
def clam(inputs: Inputs) -> Case:
    """The rules differ (theirs ask for one of four points in an outline), so the numbers of tiles differ somewhat."""
    return _against(inputs, "CLAM", "CLAM: `segmentTissue` + `process_contours`, its defaults", 0.2)


@case("tissue/trident")
def trident(inputs: Inputs) -> Case:
    """With its one segmenter that needs no weights."""
    return _against(inputs, "TRIDENT", "TRIDENT: `segment_tissue` (Otsu) + `extract_tissue_coords`", None)
