"""Where torch computes. Not imported by the other files of this room: it loads torch."""

from __future__ import annotations

import torch

from histotl.core.errors import SetupError, UsageError


def choose_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` into a device that is there; ``auto`` takes a GPU, else the CPU.

    Raises:
        UsageError: Not the name of a device that is supported.
        SetupError: This machine, or this build of torch, does not have it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {name!r} is unknown", hint="give auto, cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is not supported", hint="give auto, cpu, cuda or cuda:1")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        fact = f"device {name!r} was asked for, but torch sees {torch.cuda.device_count()} GPUs"
        raise SetupError(fact, hint="give --device auto or cpu")
    return device
