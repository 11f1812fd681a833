"""The direction whose projections on all gradients are equal (Liu et al., ICLR 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from histotl.core.registry import register
from histotl.learn._gramian import imtl_g
from histotl.learn.balancing.base import FromGramian, Setting


@register("balancing", "imtl_g")
@dataclass(frozen=True, kw_only=True)
class ImtlG:
    """Impartial multi-task learning: the same progress along every task's unit gradient."""

    def start(self, setting: Setting) -> FromGramian:  # noqa: ARG002
        """The rule has no state."""
        return FromGramian(solve=imtl_g)
