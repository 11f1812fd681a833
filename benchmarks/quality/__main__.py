"""AUROC of the quality figures on clean tiles that were degraded by known amounts.

    python -m benchmarks.quality --painted 4 [--tiles NAME MPP FOLDER]... [--slide NAME FILE]... [--most 200]
    python -m benchmarks.quality --lines …

Prints a table with a column a source and one for all together, and what a tile costs on one thread. With --lines it
prints in its place how many clean and degraded tiles lie beyond the lines that summaries draw.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality.cases import CASES, auroc, beyond, figures, interval, scores
from benchmarks.quality.degrade import Tile
from benchmarks.quality.sources import PAINTED_MPP, cut, images, painted_slide, slide_tiles
from histotl.image.measures import DOUBTFUL, Measures

Source = tuple[list[Tile], float]
"""Clean tiles and their pixel size in µm."""

ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


def sources(args: argparse.Namespace) -> dict[str, Source]:
    """Name -> clean tiles and their pixel size."""
    found: dict[str, Source] = {}
    if args.painted:
        found["painted"] = (
            [tile for seed in range(args.painted) for tile in cut(painted_slide(seed).image)],
            PAINTED_MPP,
        )
    for name, mpp, folder in args.tiles:
        files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in ENDINGS)
        found[name] = images([path for path in files if "mask" not in path.as_posix()], args.most), float(mpp)
    for name, path in args.slide:
        found[name] = slide_tiles(Path(path))
    return found


def print_lines(measures: Measures, found: Mapping[str, Source]) -> None:
    """Shares of the clean and of the degraded tiles that are called doubtful, a row for each case."""
    print("| done to the tile | doubtful | " + " | ".join(f"{name}, clean / done" for name in found) + " | all |")
    print("|---|---|" + "---|" * (len(found) + 1))
    clean = {name: figures(measures, tiles, mpp) for name, (tiles, mpp) in found.items()}
    for case in CASES:
        for column in (column for column in case.columns if column in DOUBTFUL):
            pairs = [beyond(case, column, measures, *source, clean[name]) for name, source in found.items()]
            pairs.append((np.concatenate([one for one, _ in pairs]), np.concatenate([other for _, other in pairs])))
            cells = [f"{before.mean():.1%} / {after.mean():.1%}" for before, after in pairs]
            print(f"| {case.name} | `{DOUBTFUL[column]}` | " + " | ".join(cells) + " |", flush=True)
    print("\nclean tiles: " + ", ".join(f"{name} {len(tiles)}" for name, (tiles, _) in found.items()))


def cost_ms(measures: Measures, tiles: int = 64, rounds: int = 15) -> float:
    """Milliseconds a tile of 224 px on one thread, median over rounds."""
    batch = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (tiles, 224, 224, 3), dtype=np.uint8))
    seconds = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        measures(batch, 0.5)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:])) / tiles * 1e3


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--painted", type=int, default=4)
    parser.add_argument("--tiles", nargs=3, action="append", default=[], metavar=("NAME", "MPP", "FOLDER"))
    parser.add_argument("--slide", nargs=2, action="append", default=[], metavar=("NAME", "FILE"))
    parser.add_argument("--most", type=int, default=200)
    parser.add_argument("--lines", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    measures, found = Measures.parse("all"), sources(args)
    if args.lines:
        print_lines(measures, found)
        return
    names = [*found, "all"] if len(found) > 1 else list(found)
    print("| done to the tile | figure | " + " | ".join(names) + " |")
    print("|---|---|" + "---|" * len(names))
    clean = {name: figures(measures, tiles, mpp) for name, (tiles, mpp) in found.items()}
    for case in CASES:
        made = [list(scores(case, measures, *source, clean[name])) for name, source in found.items()]
        for each in zip(*made, strict=True):
            pairs = [(clean, changed) for _, clean, changed in each]
            if len(pairs) > 1:
                clean_all, changed_all = (np.concatenate(side) for side in zip(*pairs, strict=True))
                pairs.append((clean_all, changed_all))
            cells = [f"{auroc(*pair):.3f} ({low:.3f}–{high:.3f})" for pair in pairs for low, high in [interval(*pair)]]
            print(f"| {case.name} | `{each[0][0]}` | " + " | ".join(cells) + " |", flush=True)
    print("\nclean tiles: " + ", ".join(f"{name} {len(tiles)}" for name, (tiles, _) in found.items()))
    print(f"all figures of a 224 px tile, one thread: {cost_ms(measures):.2f} ms")


if __name__ == "__main__":
    main()
