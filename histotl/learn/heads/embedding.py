"""One of several classes: a vote of the nearest training rows, in a space that is learnt for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F

from histotl.core.errors import UsageError
from histotl.core.registry import register
from histotl.learn.heads.base import Floats, Indices, Nature
from histotl.learn.heads.multiclass import Multiclass
from histotl.learn.metric_losses import (
    batch_hard_triplet,
    cauchy_hash,
    cauchy_rounding,
    in_groups,
    supervised_contrast,
)
from histotl.learn.recall import Recall

SEED = 0
"""Of the draw of rows that are kept: the same rows in all members, so that their neighbours can be compared."""


@register("head", "embedding")
@dataclass(frozen=True, kw_only=True)
class Embedding:
    """One of k classes: classification and retrieval learnt together, answered by the nearest training rows.

    Peng et al. 2019 (deep k-NN on colorectal slides): vectors of one class are brought together (``loss``) while a
    cross-entropy tells the classes apart; then the labelled training rows are kept, and the share of votes of those
    nearest to a new row by cosine is the probability of each class. Confidence is thus the agreement of the
    neighbours, until calibration corrects it, and the neighbours are the evidence (``histotl retrieve``). A training
    row is among its own neighbours: answers for rows of train are too good, as those of any model are.

    The first outputs are the vector, the others one logit a class.

    Args:
        width: Numbers of the vector.
        loss: ``supcon``: supervised contrast (Khosla et al. 2020). ``triplet``: the farthest row of the class against
            the nearest of another (Hermans et al. 2017). Both compare the rows of one step: give steps of many.
        sharpness: Temperature of ``supcon``; small ones look at the nearest rows only.
        margin: Of ``triplet``, in Euclidean distances of vectors of length 1, up to 2.
        cross_entropy: Weight of the cross-entropy beside ``loss``; 0 for none.
        hash_bits: Above 0, the vector is a code of so many bits, compared by Hamming distance: in place of ``width``,
            and learnt with a Cauchy loss besides (Cao et al. 2018).
        hash_weight: Of that loss.
        hash_radius: Its gamma: the Hamming distance at which two rows are as likely of one class as not.
        k: Neighbours that vote; 0 for 1 % of the rows that are kept, at least 10 and at most 50.
        temperature: Votes weigh exp(cosine / temperature); 0: all alike.
        most: Most rows that are kept; of more, as many are drawn.
        bank: Rows that are kept; set by training.
    """

    width: int = 64
    loss: Literal["supcon", "triplet"] = "supcon"
    sharpness: float = 0.1
    margin: float = 0.2
    cross_entropy: float = 1.0
    hash_bits: int = 0
    hash_weight: float = 1.0
    hash_radius: float = 2.0
    k: int = 0
    temperature: float = 0.0
    most: int = 100_000
    bank: int = 0

    nature: ClassVar[Nature] = Nature(answers="classes", least=2, most=None, votes=True)

    def __post_init__(self) -> None:
        limits = {
            "width": (1, "numbers of the vector, such as 64"),
            "cross_entropy": (0, "a weight of 0 or more, such as 1.0"),
            "hash_bits": (0, "bits, such as 48, or 0 for none"),
            "hash_weight": (0, "a weight of 0 or more, such as 1.0"),
            "k": (0, "neighbours, such as 20, or 0 for 1 % of the rows that are kept"),
            "temperature": (0, "a temperature such as 0.07, or 0 for votes that weigh alike"),
            "most": (1, "rows, such as 100000"),
            "bank": (0, "nothing: training sets it"),
        }
        for name, (least, cure) in limits.items():
            if not least <= getattr(self, name) < float("inf"):
                raise UsageError(f"{name} is {getattr(self, name)}", hint=f"give {cure}")
        for name, most in (("sharpness", float("inf")), ("margin", 2.0), ("hash_radius", float("inf"))):
            if not 0 < getattr(self, name) <= most:
                cure = "give a number above 0" + (f" and up to {most:g}" if most < float("inf") else ", such as 0.1")
                raise UsageError(f"{name} is {getattr(self, name)}", hint=cure)

    @property
    def size(self) -> int:
        """Outputs that are the vector."""
        return self.hash_bits or self.width

    def n_outputs(self, n_classes: int) -> int:
        """The vector and one logit a class; behind the rows that are kept, one logit a class."""
        return n_classes if self.bank else self.size + n_classes

    def learn(self, target: Floats) -> Embedding:  # noqa: ARG002
        """With no row kept yet, whatever an earlier training kept."""
        return replace(self, bank=0)

    def row_losses(
        self, outputs: torch.Tensor, target: torch.Tensor, class_weight: torch.Tensor | None
    ) -> torch.Tensor:
        """The cross-entropy of each row; see :meth:`compared` for the rest of the loss."""
        return self.cross_entropy * Multiclass().row_losses(outputs[:, self.size :], target, class_weight)

    def compared(self, outputs: torch.Tensor, target: torch.Tensor, class_weight: torch.Tensor | None) -> torch.Tensor:
        """What each row costs beside the others of the step; rows with votes count for the class with most of them."""
        classes = target.argmax(dim=1) if target.ndim == 2 else target
        rows = in_groups(self._pairwise, outputs[:, : self.size], classes)
        return rows if class_weight is None else rows * class_weight[classes]

    def _pairwise(self, rows: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        rows = torch.tanh(rows) if self.hash_bits else rows
        unit = F.normalize(rows, dim=1)
        if self.loss == "supcon":
            found = supervised_contrast(unit, classes, self.sharpness)
        else:
            found = batch_hard_triplet(unit, classes, self.margin)
        if not self.hash_bits:
            return found
        hashed = cauchy_hash(rows, classes, self.hash_radius) + cauchy_rounding(rows, self.hash_radius)
        return found + self.hash_weight * hashed

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """(n, k): shares of the votes; before rows are kept, the softmax that the cross-entropy taught."""
        return (outputs if self.bank else outputs[:, self.size :]).softmax(dim=1)

    def adjusted(self, outputs: torch.Tensor, prior: torch.Tensor, tau: float) -> torch.Tensor:
        """Logits plus ``tau`` times the log prior; the vector stays."""
        return torch.cat([outputs[:, : self.size], outputs[:, self.size :] + tau * torch.log(prior)], dim=1)

    def kept(self, n: int) -> tuple[Embedding, Indices]:
        """See :class:`histotl.learn.heads.base.Recalling`."""
        places = np.arange(n, dtype=np.int64)
        if n > self.most:
            places = np.sort(np.random.default_rng(SEED).choice(n, self.most, replace=False)).astype(np.int64)
        return replace(self, bank=len(places)), places

    def recall(self, outputs: int) -> Recall:
        """See :class:`histotl.learn.heads.base.Recalling`."""
        return Recall(
            self.bank,
            self.size,
            outputs - self.size,
            neighbours=self.k,
            temperature=self.temperature,
            binary=self.hash_bits > 0,
        )
