"""Vahadane stain normalisation, fitted once a slide.

Vahadane et al., "Structure-Preserving Color Normalization and Sparse Stain Separation for Histological Images", IEEE
TMI 2016. The colours of the two stains are the factors of a sparse non-negative factorisation of the optical densities:
a pixel is mostly one stain, and no stain gives light back. Slower than Macenko and less easily misled by a few odd
pixels, as it looks at all of them and not at the extremes.

The authors leave the factorisation to SPAMS. With two stains it is small: the concentrations of all pixels have a
closed form, and the colours follow from two sums of products (Mairal et al., JMLR 2010, algorithm 2), so it is written
here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from histotl.core.errors import StainError, UsageError
from histotl.core.registry import register
from histotl.image._od import CURE, Array
from histotl.image._two_stains import TwoStains, angle_deg, haematoxylin_first, refuse_one_colour

_START = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))
"""Where the search begins: the stains that Ruifrok and Johnston measured."""

_MOST_PIXELS = 30_000
"""Pixels that the factors are found from; more change them by less than a tenth of a degree."""

_MOST_TURNS, _SETTLED = 300, 1e-5
"""Turns of the search, and the change of a colour in a turn at which it ends."""


@register("stain", "vahadane")
@dataclass(frozen=True, kw_only=True)
class Vahadane(TwoStains):
    """Moves a slide's stains, found by sparse non-negative factorisation, to reference ones (Vahadane 2016).

    Args:
        sparsity: Weight of the sum of concentrations against the squared error; 0 or more.
        beta: Pixels with a mean optical density (natural logarithm) below this are glass.
        white: What density is measured against: the colour of the ``slide``'s own glass, where its tiles show enough of
            it (where they do not, the file says why, and it is 255), or 255 in each channel, as published.
        target: Where the reference comes from, if not from the numbers below: a slide, an image, a saved state
            (JSON), or ``cohort`` for the median of the run's slides.
        fallback: What becomes of a slide whose stain cannot be told: ``fail`` it, ``skip`` its normalisation, or
            take the ``cohort``'s stain for its own.
        percentile: Percentile of a stain's concentration that counts as its strength.
        residual: The part of a colour that no mixture of the two stains makes (blood, pigment, pen): ``keep`` it,
            weaker where a stain becomes weaker and never stronger, or ``drop`` it, as the paper does.
        haematoxylin: Reference colour of haematoxylin as R, G, B optical densities; Macenko's.
        eosin: The same of eosin.
        strengths: Reference concentrations of haematoxylin and eosin at ``percentile``; likewise.
        glass: Reference colour of glass as R, G, B levels.
    """

    sparsity: float = 0.1

    def __post_init__(self) -> None:
        if not self.sparsity >= 0:
            raise UsageError(f"vahadane: sparsity is {self.sparsity}", hint="give 0 or more, such as 0.1")
        super().__post_init__()

    def stains(self, stained: Array) -> Array:
        """Factors of the densities; see :meth:`TwoStains.stains`."""
        step = -(-len(stained) // _MOST_PIXELS)
        found = factors(stained[::step], self.sparsity)
        if not found.any(axis=1).all():
            raise StainError(f"vahadane: one stain explains all of {len(stained)} stained pixels", hint=CURE)
        refuse_one_colour("vahadane", stained, angle_deg(found))
        return haematoxylin_first(found)


def factors(density: Array, sparsity: float) -> Array:
    """Two non-negative unit vectors (2, 3) that minimise ``|V - H W|² / 2 + sparsity |H|₁`` with ``H >= 0``.

    Args:
        density: V, (n, 3).
        sparsity: Weight of the second term.

    Returns:
        W; a row of zeros for a stain that no pixel needs.
    """
    colours: Array = np.array(_START) / np.linalg.norm(_START, axis=1, keepdims=True)
    for _ in range(_MOST_TURNS):
        before = colours.copy()
        amounts = _amounts(density @ colours.T - sparsity, float(colours[0] @ colours[1]))
        among, along = amounts.T @ amounts, amounts.T @ density
        for own in (0, 1):
            if among[own, own] == 0:
                colours[own] = 0
                continue
            moved = colours[own] + (along[own] - among[own] @ colours) / among[own, own]
            moved = np.maximum(moved, 0)
            # The penalty pushes every colour outwards to length 1, where the paper has it too.
            colours[own] = moved / max(float(np.linalg.norm(moved)), 1e-12)
        if not colours.any(axis=1).all() or np.abs(colours - before).max() < _SETTLED:
            break
    return colours


def _amounts(pull: Array, cosine: float) -> Array:
    """Non-negative concentrations (n, 2) that minimise the error: in closed form.

    Args:
        pull: (n, 2): products of the densities with the two unit colours, less the penalty.
        cosine: Of the angle between the colours.
    """
    both = (pull - cosine * pull[:, ::-1]) / max(1 - cosine * cosine, 1e-9)
    # Where one of them would be negative it is 0, and the other is found alone.
    alone = np.maximum(pull, 0) * (both[:, ::-1] < 0)
    inside = (both >= 0).all(axis=1, keepdims=True)
    found: Array = np.where(inside, both, alone)
    return found
