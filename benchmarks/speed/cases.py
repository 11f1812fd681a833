"""All cases, in the order in which data walks through the rooms."""

from __future__ import annotations

import fnmatch

# Importing a room's cases registers them.
from benchmarks.speed import (  # noqa: F401
    cases_embed,
    cases_flow,
    cases_gpu,
    cases_learn,
    cases_memory,
    cases_mil,
    cases_pixels,
    cases_read,
    cases_readers,
    cases_store,
    cases_tissue,
    cases_train,
)
from benchmarks.speed.harness import MAKERS, run

__all__ = ["KEYS", "chosen", "run"]

ORDER = (
    "read",
    "tissue",
    "stain",
    "pixels",
    "backbone",
    "flow",
    "embed",
    "memory",
    "gpu",
    "store",
    "learn",
    "train",
    "evaluate",
)

KEYS = sorted(MAKERS, key=lambda key: ORDER.index(key.partition("/")[0]))
"""Keys of all cases; within a room in the order of the file."""


def chosen(pattern: str) -> list[str]:
    """Keys that match a glob, such as ``read/*``."""
    return [key for key in KEYS if fnmatch.fnmatchcase(key, pattern)]
