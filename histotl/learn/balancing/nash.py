"""Tasks bargain for the direction (Navon et al., ICML 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from histotl.core.registry import register
from histotl.learn._gramian import nash
from histotl.learn.balancing.base import FromGramian, Setting


@register("balancing", "nash")
@dataclass(frozen=True, kw_only=True)
class NashMTL:
    """The Nash bargaining solution: no task's scale counts, and none can gain more than the others lose, relatively."""

    def start(self, setting: Setting) -> FromGramian:  # noqa: ARG002
        """The rule has no state."""
        return FromGramian(solve=nash)
