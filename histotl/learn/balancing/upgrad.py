"""Gradients are projected on the cone of no conflict, then summed (Quinton and Rey 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from histotl.core.registry import register
from histotl.learn._gramian import upgrad
from histotl.learn.balancing.base import FromGramian, Setting


@register("balancing", "upgrad")
@dataclass(frozen=True, kw_only=True)
class UPGrad:
    """The sum of the projections, which makes no task worse and is fair to small gradients."""

    def start(self, setting: Setting) -> FromGramian:  # noqa: ARG002
        """The rule has no state."""
        return FromGramian(solve=upgrad)
