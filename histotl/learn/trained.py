"""A model in memory, as training leaves it, and its answers for whole cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from histotl.core.allocator import large_blocks_kept
from histotl.learn.bags import Bags
from histotl.learn.decisions import slide_means
from histotl.learn.fit import Fitted
from histotl.learn.model import Model

EVAL_ROWS = 16384
"""Tiles in one pass over the validation cases."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A model in memory, and what it did on validation.

    Args:
        model: Calibrated, with its decisions.
        fitted: How its networks were trained.
        validation: Task -> metric -> value.
        answers: Task -> its answers for the validation cases (n, k).
        notes: What could not be calibrated or decided as asked.
    """

    model: Model
    fitted: Fitted
    validation: Mapping[str, Mapping[str, float]]
    answers: Mapping[str, npt.NDArray[np.float64]]
    notes: Mapping[str, Mapping[str, str]]


@large_blocks_kept()
def case_answers(model: Model, bags: Bags) -> dict[str, npt.NDArray[np.float64]]:
    """Task name -> calibrated answers for whole cases (B, k), as ``predict`` gives them without views."""
    parts = []
    for chunk in bags.chunks(EVAL_ROWS):
        packed = bags.gather(chunk)
        found = model.answer(packed).tasks
        of_tiles = model.level == "tile" and model.kind == "slides"
        parts.append(slide_means(found, packed.offsets.numpy()) if of_tiles else found)
    return {task.name: np.concatenate([part[task.name] for part in parts]) for task in model.tasks}
