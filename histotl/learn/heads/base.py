"""The contract of a task head.

A head is a frozen dataclass registered as ``@register("head", kind)`` under the task kind that it serves: ``binary``,
``multiclass``, ``multilabel``, ``ordinal``, ``regression``, ``survival`` … Its fields are options of the task's text,
``grade: ordinal(loss='coral')``. It holds no weights: it says how many outputs the layer of its task has, what the loss
of each labelled row is, and how outputs become answers.

All other code asks a head for its :class:`Nature`, never for its name, so that a head in a file of your own is trained,
predicted and evaluated like those here. What only some heads need is a protocol of its own: :class:`Layered`,
:class:`Learning`, :class:`Joint`, :class:`Comparing`, :class:`Decoding`, :class:`Deciding`, :class:`Adjustable`,
:class:`Finishing`, :class:`Recalling`, :class:`Spread`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from histotl.learn.recall import Recall

Answer = Literal["classes", "labels", "number", "risk"]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Nature:
    """What a kind of task is about.

    Args:
        answers: ``classes``: one of k, probabilities sum to 1; ``labels``: any of k, each with its own probability;
            ``number``: a value in units of the labels; ``risk``: higher means an earlier event.
        least: Fewest classes (or labels) of a task.
        most: Most of them; None for any number.
        ordered: The classes are grades, lowest first.
        votes: Labels may be shares of votes.
        worst: The label of a bag is the highest of its rows'.
    """

    answers: Answer
    least: int = 0
    most: int | None = 0
    ordered: bool = False
    votes: bool = False
    worst: bool = False

    def n_targets(self, n_classes: int, *, votes: bool = False) -> int:
        """Columns of the targets: the class or number; one a label; time and event; one share a class of votes."""
        return {"classes": n_classes if votes else 1, "labels": n_classes, "number": 1, "risk": 2}[self.answers]


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """What training labels say about one task.

    Args:
        counts: Labelled training rows of each class (of votes: by majority), positive rows of each label, or one
            number: all labelled rows; events of a survival task.
        class_weight: Weight of each class in the loss, sum over rows = number of rows; empty for none. Of labels: of
            the negatives of each, then of the positives of each.
        prior_loss: Loss of the constant predictor, the unit of the task's loss.
        mean: Of the training labels (a number), else 0.
        std: Of the training labels (a number), else 1.
        prior: Share of each class, or of the positives of each label; empty for others.
        implied: The shares that answers take for granted: ``prior`` behind class weights and logit adjustment.
    """

    counts: tuple[int, ...]
    class_weight: tuple[float, ...] = ()
    prior_loss: float = 1.0
    mean: float = 0.0
    std: float = 1.0
    prior: tuple[float, ...] = ()
    implied: tuple[float, ...] = ()


class Head(Protocol):
    """Loss and decoding of one task kind. n rows, k classes, o outputs."""

    nature: ClassVar[Nature]

    def n_outputs(self, n_classes: int) -> int:
        """Outputs of the task's layer for ``n_classes`` (0 where there are none)."""

    def row_losses(
        self, outputs: torch.Tensor, target: torch.Tensor, class_weight: torch.Tensor | None
    ) -> torch.Tensor:
        """Loss of each labelled row.

        Args:
            outputs: float (n, o).
            target: int64 (n,) class indices; float (n, k) shares of votes; float (n, k) labels 0 or 1, NaN where an
                entry is missing; float (n,) standardised numbers; float (n, 2) time and event. No row is without any
                label: the caller drops those, so that a missing label is the same as an absent row.
            class_weight: float (k,) or None; (2k,) of labels.

        Returns:
            float (n,); of labels (n, k), finite where the entry is missing, too.
        """

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """Answers (n, m) as they are averaged over networks.

        Class probabilities (n, k), rows summing to 1; probabilities of labels (n, k); the standardised number first;
        what :meth:`Decoding.decode` makes a risk of.
        """


@runtime_checkable
class Layered(Protocol):
    """A head whose layer is not plain linear."""

    def layer(self, width: int, outputs: int) -> nn.Module:
        """Module (n, width) -> (n, outputs). Its matrices get their first weights from the caller."""


@runtime_checkable
class Learning(Protocol):
    """A head with options that training labels fix, such as the edges of time bins."""

    def learn(self, target: Floats) -> Head:
        """The same head with these options, from the labelled rows of train (n, c)."""


@runtime_checkable
class Joint(Protocol):
    """A head that may have one loss of all rows together, in place of one a row."""

    @property
    def joint(self) -> bool:
        """Whether it has."""

    def joint_loss(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor | None:
        """The loss of the rows, a scalar; None where they say nothing, such as without any event."""


def is_joint(head: Head) -> bool:
    """Whether the head has one loss of all rows together."""
    return isinstance(head, Joint) and head.joint


@runtime_checkable
class Comparing(Protocol):
    """A head whose rows also learn from one another, beside the loss that each has by itself."""

    def compared(self, outputs: torch.Tensor, target: torch.Tensor, class_weight: torch.Tensor | None) -> torch.Tensor:
        """What each labelled row of a step costs beside the others (n,); arguments as of :meth:`Head.row_losses`."""


@runtime_checkable
class Decoding(Protocol):
    """A head whose averaged probabilities are not yet answers, or that answers with more than one column."""

    @property
    def extras(self) -> tuple[str, ...]:
        """Names of the columns behind the first one."""

    def decode(self, values: Floats, facts: TaskFacts) -> Floats:
        """Averaged (n, m) into answers (n, 1 + extras) in units of the labels."""


@runtime_checkable
class Deciding(Protocol):
    """A head with a rule of its own for the class, in place of the most probable one."""

    def decide(self, probabilities: Floats) -> npt.NDArray[np.int64]:
        """Class index of each row (n,) from (n, k)."""


@runtime_checkable
class Adjustable(Protocol):
    """A head whose outputs can be shifted by the log prior of the classes while it is trained."""

    def adjusted(self, outputs: torch.Tensor, prior: torch.Tensor, tau: float) -> torch.Tensor:
        """Outputs plus ``tau`` times the log prior (Menon et al. 2021); ``prior`` float (k,)."""


@runtime_checkable
class Finishing(Protocol):
    """A head that looks at the trained network's answers for the training rows once, such as for a baseline hazard."""

    def finish(self, values: Floats, target: Floats) -> Head:
        """The same head with what it saw: averaged ``probabilities`` (n, m) and targets (n, c) of labelled rows."""


@runtime_checkable
class Recalling(Protocol):
    """A head that answers by training rows which the trained network keeps, such as a vote of the nearest."""

    def kept(self, n: int) -> tuple[Head, Indices]:
        """The same head, told how many rows are kept, and which of ``n`` labelled ones these are.

        From then on it means what :meth:`recall` gives by ``n_outputs`` and ``probabilities``.
        """

    def recall(self, outputs: int) -> Recall:
        """What stands behind the task's ``outputs`` and keeps the rows, empty; of a head that was told their number."""


@runtime_checkable
class Spread(Protocol):
    """A head for numbers that also says how far off they may be."""

    def central(self, values: Floats, share: float = 0.9) -> Floats | None:
        """Ends (n, 2) of the interval that holds ``share`` of the labels, from decoded (n, m); None without one."""


def decoded(head: Head, values: Floats, facts: TaskFacts) -> Floats:
    """Averaged answers (n, m) of a head without classes, in units of the labels; those of labels as they are."""
    if isinstance(head, Decoding):
        return head.decode(values, facts)
    return values * facts.std + facts.mean if head.nature.answers == "number" else values
