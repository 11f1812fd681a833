"""The white of a slide in every method: glass goes to glass, and 255 is what was published."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from histotl.core.errors import SpecError, UsageError
from histotl.core.registry import canonical, create
from histotl.image._planes import map_planes
from histotl.image.estimate import Estimate, median
from histotl.image.stain.macenko import Macenko

METHODS = ("macenko", "vahadane", "ruifrok", "reinhard", "histogram")
OF_DENSITY = ("macenko", "vahadane", "ruifrok")
GREY, TINTED = (225.0, 220.0, 228.0), (246.0, 240.0, 222.0)


def slide(white: tuple[float, ...], *, strength: float = 1.0, glass: int = 24, noise: float = 0.7) -> torch.Tensor:
    """Tiles of one tissue on glass of a colour, a strip of it bare: uint8 (4, 96, 96, 3)."""
    rng = np.random.default_rng(0)
    kind = rng.choice(3, size=(4, 96, 96))
    one = np.where(kind == 0, rng.gamma(4, 0.3, kind.shape), np.where(kind == 2, rng.gamma(3, 0.2, kind.shape), 0.0))
    two = np.where(kind == 1, rng.gamma(4, 0.15, kind.shape), np.where(kind == 2, rng.gamma(3, 0.1, kind.shape), 0.0))
    unit = np.array([[0.638, 0.687, 0.285], [0.12, 0.97, 0.22]])
    density = strength * np.stack([one, two], axis=-1) @ unit
    density[:, :glass] = 0
    light = (np.array(white) + 1) * np.exp(-density) - 1 + rng.normal(0, noise, density.shape)
    return torch.from_numpy(np.clip(np.rint(light), 0, 255).astype(np.uint8))


def patch_of(colour: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(colour).round().to(torch.uint8).expand(1, 8, 8, 3).contiguous()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("white", [GREY, TINTED])
def test_glass_is_found_and_said(method: str, white: tuple[float, ...]) -> None:
    state = create("stain", method).fit(slide(white)).state
    np.testing.assert_allclose(state["white"], white, atol=1)
    assert "white_unknown" not in state


@pytest.mark.parametrize("method", [*OF_DENSITY, "histogram"])
@pytest.mark.parametrize("white", [GREY, TINTED])
def test_glass_goes_to_that_of_the_reference(method: str, white: tuple[float, ...]) -> None:
    tiles = slide(white)
    for glass in ((255.0,) * 3, (240.0, 241.0, 236.0)):
        transform = dataclasses.replace(create("stain", method), glass=glass).fit(tiles)
        np.testing.assert_allclose(transform(patch_of(white))[0, 0, 0].numpy(), glass, atol=2)


@pytest.mark.parametrize("method", [*OF_DENSITY, "histogram"])
@pytest.mark.parametrize("white", [GREY, TINTED, (255.0,) * 3])
def test_white_stays_white(method: str, white: tuple[float, ...]) -> None:
    transform = create("stain", method).fit(slide(white))
    assert (transform(patch_of((255.0,) * 3)) == 255).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("white", [GREY, TINTED])
def test_a_slide_that_is_the_reference_stays_as_it_is_on_grey_glass(method: str, white: tuple[float, ...]) -> None:
    tiles = slide(white)
    normalizer = create("stain", method)
    itself = normalizer.towards(normalizer.estimate(tiles))
    np.testing.assert_allclose(itself.glass, white, atol=1)
    both = torch.cat([tiles, patch_of(white).expand(4, 8, 8, 3).repeat(1, 12, 1, 1)], dim=2)
    off = (itself.fit(tiles)(both).int() - both.int()).abs()
    assert off.max() <= 1
    assert (off > 0).float().mean() < 0.01


@pytest.mark.parametrize("method", OF_DENSITY)
def test_two_glasses_of_one_staining_become_alike(method: str) -> None:
    """Against 255 paler stains are made stronger and take the glass with them."""
    plain, grey = slide((252.0, 252.0, 252.0)), slide(GREY, strength=0.6)

    def apart(white: str) -> float:
        normalizer = create("stain", f"{method}(white={white})")
        first, second = (normalizer.fit(tiles)(tiles)[:, :24].float().mean((0, 1, 2)) for tiles in (plain, grey))
        return float((first - second).abs().max())

    assert apart("'slide'") < 2
    assert apart("255") > 20


@pytest.mark.parametrize("method", METHODS)
def test_255_is_the_published_way(method: str) -> None:
    tiles = slide(GREY)
    published = create("stain", f"{method}(white=255)")
    state = published.fit(tiles).state
    assert state["white"] == [255, 255, 255]
    assert "white_unknown" not in state
    reference = create("stain", method).estimate(tiles)
    assert published.towards(reference).glass == (255, 255, 255)


@pytest.mark.parametrize("method", METHODS)
def test_without_glass_it_is_255_and_the_reason_is_kept(method: str) -> None:
    tiles = slide(GREY, glass=0)
    found = create("stain", method).fit(tiles)
    assert found.state["white"] == [255, 255, 255]
    assert "flat and bright" in str(found.state["white_unknown"])
    assert torch.equal(found(tiles), create("stain", f"{method}(white=255)").fit(tiles)(tiles))


@pytest.mark.parametrize("method", METHODS)
def test_other_devices_see_the_same_white(method: str) -> None:
    tiles = slide(GREY)
    transform = dataclasses.replace(create("stain", method), glass=TINTED).fit(tiles)
    ours, plain = transform(tiles).int(), map_planes(tiles, transform.on_planes).int()
    assert (ours - plain).abs().max() <= 1
    assert (ours != plain).float().mean() < 2e-3


def test_the_cohorts_white_is_that_of_slides_whose_glass_was_seen() -> None:
    normalizer = Macenko()
    seen, other = (normalizer.estimate(slide(white)) for white in (GREY, TINTED))
    unseen = [normalizer.estimate(slide(GREY, glass=0)) for _ in range(4)]
    cohort = median([seen, *unseen, other])
    np.testing.assert_allclose(cohort.white, np.mean([GREY, TINTED], axis=0), atol=1)
    assert not cohort.white_unknown
    assert median(unseen).white.tolist() == [255, 255, 255]
    assert "flat and bright" in median(unseen).white_unknown


def test_a_saved_stain_keeps_the_reason_and_an_older_one_has_255() -> None:
    found = Macenko().estimate(slide(GREY, glass=0))
    again = Estimate.from_json(found.to_json(), where="x.json")
    assert again.white_unknown == found.white_unknown
    older = json.loads(found.to_json())
    del older["white"], older["white_unknown"]
    read = Estimate.from_json(json.dumps(older), where="x.json")
    assert read.white.tolist() == [255, 255, 255]
    assert Macenko().towards(read).glass == (255, 255, 255)


@pytest.mark.parametrize("method", METHODS)
def test_senseless_whites_are_refused(method: str) -> None:
    with pytest.raises(SpecError, match="white=240 is not one of 'slide', 255"):
        create("stain", f"{method}(white=240)")
    for wrong in ({"white": 240}, {"glass": (0.0, 255.0, 255.0)}, {"glass": (255.0, 255.0, 256.0)}):
        with pytest.raises(UsageError, match=next(iter(wrong))) as caught:
            dataclasses.replace(create("stain", method), **wrong)
        assert caught.value.hint
    assert canonical(create("stain", f"{method}(white=255.0)")) == canonical(create("stain", f"{method}(white=255)"))
