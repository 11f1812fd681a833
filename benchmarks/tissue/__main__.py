"""``python -m benchmarks.tissue``: agreement of tissue masks with painted truth, least and median of each kind."""

from __future__ import annotations

import argparse
from collections import defaultdict
from statistics import median

from benchmarks.tissue.painted import found, inked_share, iou, slides

FINDERS = ("hysteresis", "texture", "otsu", "otsu(by='density')")


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tissue", description=__doc__)
    parser.add_argument("finders", nargs="*", default=list(FINDERS), help="tissue specs")
    parser.add_argument("--seeds", type=int, default=3, help="slides of each kind and site")
    options = parser.parse_args()
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    inked: dict[str, list[float]] = defaultdict(list)
    for kind, slide in slides(options.seeds):
        for finder in options.finders:
            mask = found(slide, finder)
            scores[kind, finder].append(iou(mask, slide))
            if "pen" in kind:
                inked[finder].append(inked_share(mask, slide))
    print("| painted |", " | ".join(f"`{finder}`" for finder in options.finders), "|")
    print("|---|" + "---|" * len(options.finders))
    for kind in dict.fromkeys(kind for kind, _ in scores):
        cells = (scores[kind, finder] for finder in options.finders)
        print(f"| {kind} |", " | ".join(f"{median(cell):.3f} ({min(cell):.3f})" for cell in cells), "|")
    shares = (inked[finder] for finder in options.finders)
    print("| ink on glass taken for tissue |", " | ".join(f"{median(s):.2f} ({max(s):.2f})" for s in shares), "|")


if __name__ == "__main__":
    main()
