"""The components of the gradients are made equally long (Senushkin et al., CVPR 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from histotl.core.registry import register
from histotl.learn._gramian import aligned
from histotl.learn.balancing.base import FromGramian, Setting


@register("balancing", "aligned")
@dataclass(frozen=True, kw_only=True)
class AlignedMTL:
    """Principal components of the gradients scaled to the shortest: no dominance, and no conflict."""

    def start(self, setting: Setting) -> FromGramian:  # noqa: ARG002
        """The rule has no state."""
        return FromGramian(solve=aligned)
