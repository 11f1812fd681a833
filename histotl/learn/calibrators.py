"""Ways to make stated probabilities come true, each a frozen value of plain numbers that the model's file keeps.

- temperature: outputs divided by one number (Guo et al. 2017, "On calibration of modern neural networks"); it keeps
  the order of the classes of one network.
- vector: each output times and plus numbers of its own (the same paper; of two classes, Platt scaling).
- isotonic: each class's probability through a rising step function (Zadrozny & Elkan 2002), then divided by the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch

from histotl.learn.task import Task

Floats = npt.NDArray[np.float64]


class Calibration(Protocol):
    """What turns outputs of the members into probabilities."""

    kind: ClassVar[str]

    def probabilities(self, task: Task, outputs: Sequence[torch.Tensor]) -> Floats:
        """Float64 (n, k) from one float (n, o) a member; of classes rows that sum to 1."""


def averaged(task: Task, outputs: Sequence[torch.Tensor], temperature: float = 1.0) -> Floats:
    """Mean over members of the probabilities at a temperature.

    Args:
        task: Whose outputs these are.
        outputs: One float (n, o) a member.
        temperature: What outputs of tasks with classes or labels are divided by.

    Returns:
        float64 (n, m), as the head's ``probabilities``: of classes rows that sum to 1.
    """
    scale = temperature if task.classes else 1.0
    members = [task.head.probabilities(output.double() / scale) for output in outputs]
    return np.asarray(torch.stack(members).mean(dim=0).cpu().numpy(), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """Outputs divided by one number; 1 changes nothing.

    Args:
        temperature: The number, above 0.
    """

    kind: ClassVar[str] = "temperature"
    temperature: float = 1.0

    def probabilities(self, task: Task, outputs: Sequence[torch.Tensor]) -> Floats:
        """See :class:`Calibration`."""
        return averaged(task, outputs, self.temperature)


@dataclass(frozen=True, kw_only=True)
class Vector:
    """Output i becomes ``scale[i] * output + shift[i]``.

    Args:
        scale: One a output, above 0.
        shift: One a output.
    """

    kind: ClassVar[str] = "vector"
    scale: tuple[float, ...]
    shift: tuple[float, ...]

    def probabilities(self, task: Task, outputs: Sequence[torch.Tensor]) -> Floats:
        """See :class:`Calibration`."""
        scale = torch.tensor(self.scale, dtype=torch.float64)
        shift = torch.tensor(self.shift, dtype=torch.float64)
        return averaged(task, [output.double().cpu() * scale + shift for output in outputs])


@dataclass(frozen=True, kw_only=True)
class Isotonic:
    """Probability of class c becomes the value at it of a rising broken line, divided by the sum over the classes.

    Labels, which do not exclude one another, are not divided.

    Args:
        knots: For each class its rising places.
        values: For each class the values there, above 0, not falling.
    """

    kind: ClassVar[str] = "isotonic"
    knots: tuple[tuple[float, ...], ...]
    values: tuple[tuple[float, ...], ...]

    def probabilities(self, task: Task, outputs: Sequence[torch.Tensor]) -> Floats:
        """See :class:`Calibration`."""
        plain = averaged(task, outputs)
        lines = zip(self.knots, self.values, strict=True)
        mapped = np.stack([np.interp(plain[:, c], x, y) for c, (x, y) in enumerate(lines)], axis=1)
        return np.asarray(mapped / mapped.sum(axis=1, keepdims=True) if task.is_classification else mapped)


KINDS: Mapping[str, Callable[..., Calibration]] = {
    "temperature": Temperature,
    "vector": Vector,
    "isotonic": Isotonic,
}


def to_dict(calibration: Calibration) -> dict[str, object]:
    """Plain values for JSON."""
    return {"kind": calibration.kind, **asdict(calibration)}  # type: ignore[call-overload]  # all are dataclasses


def from_dict(entry: Mapping[str, object]) -> Calibration:
    """Inverse of :func:`to_dict`, of what JSON made of it.

    Raises:
        KeyError: No calibration of that kind.
        TypeError: Its numbers are of another kind's.
    """
    values = {name: _tuples(value) for name, value in entry.items() if name != "kind"}
    return KINDS[str(entry["kind"])](**values)


def _tuples(value: object) -> object:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
