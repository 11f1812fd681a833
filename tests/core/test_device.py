"""Choosing a device: what is there is taken, what is not is told."""

from __future__ import annotations

import pytest

from histotl.core.device import choose_device
from histotl.core.errors import SetupError, UsageError


def test_devices_that_are_there() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize("name", ["meta", "mps", "gpu", "quantum", "tpu9"])
def test_devices_that_are_not_supported(name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}'"):
        choose_device(name)


def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(SetupError, match="'cuda:99' was asked for, but torch sees"):
        choose_device("cuda:99")
