"""When training ends before its last step. Only the validation loss is looked at."""

from __future__ import annotations

from collections.abc import Sequence


def has_stalled(losses: Sequence[float], patience: int) -> bool:
    """Whether so many looks at the validation set in a row were no better than the best before them.

    Args:
        losses: Validation loss of every look so far.
        patience: Looks without improvement that end training; 0 for never.
    """
    return 0 < patience < len(losses) and min(losses[-patience:]) >= min(losses[:-patience])
