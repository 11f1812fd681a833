"""The three networks with real ImageNet weights: they load strictly, and their features mean something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from histotl.core.errors import WeightsError
from histotl.core.registry import create

KERAS = "model_args={'pad_type': 'same', 'bn_eps': 1e-3}, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)"
SQUEEZE = """
factory = "torchvision.models:squeezenet1_1"
submodule = "features"
weights = {weights!r}
"""


@pytest.fixture(scope="module", params=["mobilenetv1_100", "mobilenetv2_035", "squeezenet1_1"])
def embedder(request: pytest.FixtureRequest, real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = real_data / "backbones"
    if request.param == "squeezenet1_1":
        card = tmp_path_factory.mktemp("card") / "squeezenet1_1.toml"
        card.write_text(SQUEEZE.format(weights=str(folder / "squeezenet1_1_keras_in1k_features_rgbnorm.pth")))
        spec = f"module(card={str(card)!r})"
    elif request.param == "mobilenetv1_100":
        path = folder / "mobilenetv1_100_keras_in1k_nopw13.pth"
        spec = f"timm/mobilenetv1_100(weights={str(path)!r}, drop=('blocks.4.1',), {KERAS})"
    else:
        path = folder / "mobilenetv2_035_keras_in1k.pth"
        spec = f"timm/mobilenetv2_035(weights={str(path)!r}, {KERAS})"
    return create("backbone", spec).load(torch.device("cpu"))


@pytest.fixture(scope="module")
def patches(real_data: Path) -> torch.Tensor:
    """Four patches of each of two lesions, of other patients: uint8 (8, 224, 224, 3)."""
    files = [f for label in ("adenoca", "polyp") for f in sorted((real_data / "ebhi" / label).glob("*.jpg"))[::40][:4]]
    return torch.from_numpy(np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files]))


def test_features_are_finite_repeatable_and_the_same_in_any_batch(embedder: Any, patches: torch.Tensor) -> None:
    dims = {"timm/mobilenetv1_100": 1024, "timm/mobilenetv2_035": 1280, "squeezenet1_1": 512}
    with torch.inference_mode():
        features = embedder(patches)
        assert torch.equal(embedder(patches), features)
        split = torch.cat([embedder(patches[:3]), embedder(patches[3:])])
    assert features.shape == (8, dims[embedder.card.name])
    assert torch.isfinite(features).all()
    torch.testing.assert_close(split, features, rtol=1e-4, atol=1e-4)
    assert embedder.card.weights.startswith("file:")


def test_a_patch_is_nearer_to_its_mirror_image_than_to_any_other_patch(embedder: Any, patches: torch.Tensor) -> None:
    with torch.inference_mode():
        here, mirrored = embedder(patches), embedder(patches.flip(2))
    distance = torch.cdist(here, mirrored)
    assert (distance.argmin(1) == torch.arange(8)).all()


def test_weights_of_another_network_are_refused(real_data: Path) -> None:
    path = str(real_data / "backbones" / "mobilenetv1_100_keras_in1k_nopw13.pth")
    with pytest.raises(WeightsError, match=r"1 missing: blocks\.4\.1\.conv_pw\.weight"):
        create("backbone", f"timm/mobilenetv1_100(weights={path!r})").load(torch.device("cpu"))
    with pytest.raises(WeightsError, match="do not fit"):
        create("backbone", f"timm/mobilenetv2_035(weights={path!r})").load(torch.device("cpu"))


def test_equals_the_network_built_by_hand(real_data: Path, patches: torch.Tensor) -> None:
    import timm

    path = real_data / "backbones" / "mobilenetv1_100_keras_in1k_nopw13.pth"
    net: Any = timm.create_model("mobilenetv1_100", num_classes=0, pad_type="same", bn_eps=1e-3)
    net.blocks[4][1] = torch.nn.Identity()
    missing, _ = net.load_state_dict(torch.load(path, weights_only=True), strict=False)
    assert missing == []
    spec = f"timm/mobilenetv1_100(weights={str(path)!r}, drop=('blocks.4.1',), {KERAS})"
    embedder = create("backbone", spec).load(torch.device("cpu"))
    with torch.inference_mode():
        wanted = net.eval()((patches.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
        torch.testing.assert_close(embedder(patches), wanted, rtol=1e-4, atol=1e-4)
