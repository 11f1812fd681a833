"""Small networks and their weight files for the tests of this room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def tiles() -> torch.Tensor:
    """Five tiles of smooth colour, uint8 (5, 48, 48, 3)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(5, 3, 6, 6, generator=generator) * 255
    fine = torch.nn.functional.interpolate(coarse, size=(48, 48), mode="bilinear")
    return fine.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


@pytest.fixture(scope="session")
def classifier_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of timm's ``test_byobnet`` as trained: with its classifier of 1000 classes."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(3)
    net: Any = timm.create_model("test_byobnet")
    path = tmp_path_factory.mktemp("weights") / "byob.safetensors"
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, str(path))
    return path
