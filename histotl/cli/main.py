"""Entry point of the ``histotl`` command.

Exit status: 0 all done; 1 some slides failed (they are listed); 2 usage; 3 something is missing or damaged.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

# Before torch is loaded anywhere: idle OpenMP threads must sleep, since spinning ones slow the readers beside them by
# an order of magnitude; and albumentations must not ask the internet for its newest version.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

import histotl
from histotl.cli import (
    check,
    crossval,
    demo,
    doctor,
    embed,
    evaluate,
    explain,
    export,
    info,
    predict,
    retrieve,
    run,
    stain,
    tile,
    train,
)
from histotl.cli import list as list_
from histotl.cli._console import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, err, print_error
from histotl.core.errors import HistotlError

app = App(
    name="histotl",
    help=(
        "From whole-slide images to calibrated answers with evidence: tile, embed, train, predict, evaluate.\n\n"
        "Exit status: 0 all done; 1 some slides failed (they are listed); 2 usage; 3 something is missing or damaged."
    ),
    suppress_keyboard_interrupt=False,  # call() says what is kept
    version=histotl.__version__,
    default_parameter=Parameter(negative=()),
)
for verb in (
    demo.demo,
    info.info,
    doctor.doctor,
    list_.list_plugins,
    tile.tile,
    embed.embed,
    stain.stain,
    check.check,
    train.train,
    crossval.crossval,
    export.export,
    predict.predict,
    explain.explain,
    retrieve.retrieve,
    evaluate.evaluate,
    run.run,
):
    app.command(verb, name="list" if verb is list_.list_plugins else verb.__name__)


def call(argv: Sequence[str]) -> int:
    """Run one command line and return its exit status; errors of ours are printed, others are bugs and rise."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        status = app(list(argv), exit_on_error=False, result_action="return_value")
    except CycloptsError as error:
        if isinstance(error, UnusedCliTokensError):
            err().print("  hint: put a glob in quotes ('slides/*.svs'), or give the folder", markup=False)
        return EXIT_USAGE
    except HistotlError as error:
        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        err().print("interrupted; finished slides are kept, and the same command goes on from there")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) has seen enough. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    return status if isinstance(status, int) else EXIT_OK


def main() -> None:
    """Console script."""
    sys.exit(call(sys.argv[1:]))


if __name__ == "__main__":
    main()
