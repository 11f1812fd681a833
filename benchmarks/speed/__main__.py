"""``python -m benchmarks.speed``: measure, write the results, print the table."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

# As the command line of histotl does, and before torch is loaded: waiting OpenMP threads sleep instead of spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from benchmarks.speed.cases import KEYS, chosen, run
from benchmarks.speed.harness import NotMeasured, Timing
from benchmarks.speed.inputs import FULL, TINY, Inputs, real_slide
from benchmarks.speed.results import save, table

RESULTS = Path(__file__).with_name("results.json")


def main(argv: list[str] | None = None) -> int:
    """Run the cases that were asked for; 2 when none has such a name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--only", metavar="GLOB", default="*", help="cases to run, such as 'read/*'")
    parser.add_argument("--rounds", type=int, default=5, help="alternations of each case")
    parser.add_argument(
        "--peers",
        type=Path,
        metavar="DIR",
        default=os.environ.get("HISTOTL_PEERS") or None,
        help="folder with checkouts of other tools, called TRIDENT and CLAM (default: HISTOTL_PEERS)",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go, as JSON")
    parser.add_argument("--tiny", action="store_true", help="inputs so small that the figures say nothing")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}, give 1 or more")
    keys = chosen(options.only)
    if not keys:
        print(f"no case matches {options.only!r}; there are: {', '.join(KEYS)}", file=sys.stderr)
        return 2
    began, real = time.monotonic(), None if options.tiny else real_slide()
    timings: list[Timing] = []
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="histotl-bench-") as folder:
        inputs = Inputs(Path(folder), TINY if options.tiny else FULL, peers=options.peers, real=real)
        for key in keys:
            try:
                timings.append(run(key, inputs, options.rounds))
            except NotMeasured as reason:
                missing[key] = str(reason)
            else:
                _tell(timings[-1], time.monotonic() - began)
    tissue = "painted" if real is None else "a public scan"
    save(timings, options.out, not_measured=missing, tiny=options.tiny, only=options.only, tissue=tissue)
    print(table(timings, missing))
    return 0


def _tell(timing: Timing, seconds: float) -> None:
    print(f"{seconds:5.0f} s  {timing.key}: {timing.ratio:.3g}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
