"""The trunk: what is trained between the vector of a bag and the linear layers of tasks."""

from __future__ import annotations

from torch import nn

REDUNDANT_WIDTH = 128
"""Narrower vectors get less dropout on the trunk's input, in proportion."""


def build_trunk(width: int, hidden: int, dropout: float) -> tuple[nn.Module, int]:
    """A trunk of one layer, and the width of its result.

    Args:
        width: Of its input.
        hidden: Of the layer; 0 for none, which leaves the dropout.
        dropout: On its input (less where that is narrow) and output.
    """
    # A wide vector is redundant and is trained better with half of it hidden; of six colour numbers each counts.
    entry = dropout * min(1.0, width / REDUNDANT_WIDTH)
    if not hidden:
        return nn.Dropout(entry), width
    return nn.Sequential(nn.Dropout(entry), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout)), hidden
