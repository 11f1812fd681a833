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
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from benchmarks.speed.cases import KEYS, chosen, run
from benchmarks.speed.harness import Timing, save, table
from benchmarks.speed.inputs import FULL, TINY, Inputs

RESULTS = Path(__file__).with_name("results.json")


def main(argv: list[str] | None = None) -> int:
    """Run the cases that were asked for; 2 when none has such a name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--only", metavar="GLOB", default="*", help="cases to run, such as 'read/*'")
    parser.add_argument("--rounds", type=int, default=5, help="alternations of each case; long ones stop at 3")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go, as JSON")
    parser.add_argument("--tiny", action="store_true", help="inputs so small that the figures say nothing")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}, give 1 or more")
    keys = chosen(options.only)
    if not keys:
        print(f"no case matches {options.only!r}; there are: {', '.join(KEYS)}", file=sys.stderr)
        return 2
    began, timings = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="histotl-bench-") as folder:
        inputs = Inputs(Path(folder), TINY if options.tiny else FULL)
        for key in keys:
            timings.append(run(key, inputs, options.rounds))
            _tell(timings[-1], time.monotonic() - began)
    save(timings, options.out, tiny=options.tiny, only=options.only)
    print(table(timings))
    return 0


def _tell(timing: Timing, seconds: float) -> None:
    print(f"{seconds:5.0f} s  {timing.key}: {timing.ratio:.3g}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
