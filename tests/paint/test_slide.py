"""Painted slides keep what they promise: truth that agrees with the pixels, and determinism."""

import numpy as np
import pytest
from skimage.draw import polygon2mask

from histotl.core.errors import UsageError


def darkness(image, white):
    return -np.log10((image.astype(float) + 1) / (np.asarray(white) + 1)).mean(axis=-1)


def filled(region, shape):
    """Mask of a region; holes cut out."""
    masks = [polygon2mask(shape, np.array(ring)[:, ::-1]) for ring in region.rings]
    for hole in masks[1:]:
        masks[0] &= ~hole
    return masks[0]


def test_the_same_seed_gives_the_same_slide(paint_small):
    recipe = {"lesion": "serrated", "lesion_fraction": 0.5, "artefacts": ("pen", "fold", "blur", "bubble")}
    one, two, other = paint_small(3, **recipe), paint_small(3, **recipe), paint_small(4, **recipe)
    assert np.array_equal(one.image, two.image)
    assert np.array_equal(one.tissue, two.tissue)
    assert one.regions == two.regions
    assert not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("background", ["normal", "muscle"])
def test_tissue_mask_agrees_with_the_pixels(paint_small, background):
    slide = paint_small(1, background=background)
    glass = np.median(slide.image[~slide.tissue], axis=0)
    dark = darkness(slide.image, glass) > 0.03
    assert dark[slide.tissue].mean() > 0.9  # the rest: lumens and clefts
    assert dark[~slide.tissue].mean() < 0.01
    assert 0.3 < slide.tissue.mean() < 0.8


def test_glass_surrounds_the_tissue(paint_small):
    slide = paint_small(1)
    for edge in (slide.tissue[0], slide.tissue[-1], slide.tissue[:, 0], slide.tissue[:, -1]):
        assert not edge.any()


@pytest.mark.parametrize("lesion", ["serrated", "adenoma_low", "adenoma_high"])
def test_regions_tile_the_tissue_in_the_wanted_shares(paint_small, lesion):
    slide = paint_small(2, lesion=lesion, lesion_fraction=0.6, size_um=(700.0, 500.0))
    shape = slide.tissue.shape
    areas = {name: np.zeros(shape, bool) for name in ("normal", lesion)}
    for region in slide.regions:
        assert region.kind == "tissue"
        areas[region.name] |= filled(region, shape)
    assert areas[lesion].sum() / slide.tissue.sum() == pytest.approx(0.6, abs=0.05)
    assert (areas[lesion] & areas["normal"]).mean() < 0.01
    union = areas[lesion] | areas["normal"]
    assert (union & slide.tissue).sum() / (union | slide.tissue).sum() > 0.96


def test_lesions_look_different_from_normal_where_the_truth_says_so(paint_small):
    slide = paint_small(5, lesion="adenoma_high", lesion_fraction=0.5, size_um=(900.0, 600.0))
    lesion = sum(filled(r, slide.tissue.shape) for r in slide.regions if r.name == "adenoma_high") > 0
    nuclei = slide.image[..., 0] < 95
    assert nuclei[lesion].mean() > 1.3 * nuclei[slide.tissue & ~lesion].mean()


@pytest.mark.parametrize("artefact", ["pen", "fold", "blur", "bubble"])
def test_artefacts_change_pixels_inside_their_outline_only(paint_small, artefact):
    plain, marked = paint_small(6), paint_small(6, artefacts=(artefact,))
    where = sum(filled(r, plain.tissue.shape) for r in marked.regions if r.name == artefact) > 0
    assert where.any()
    changed = np.abs(plain.image.astype(int) - marked.image).max(axis=-1) > 25
    assert changed[where].mean() > 0.15
    assert changed[~where].mean() < 0.02


def test_stain_strength_not_content_sets_the_mean_colour(paint_small):
    means = []
    for lesion in (None, "serrated", "adenoma_high"):
        slide = paint_small(7, lesion=lesion, lesion_fraction=0.9 if lesion else 0.0, size_um=(700.0, 500.0))
        means.append(slide.image[slide.tissue].mean(axis=0))
    assert np.ptp(means, axis=0).max() < 16


def test_pixel_size_scales_the_picture(paint_small):
    fine, coarse = paint_small(1), paint_small(1, mpp=1.0)
    assert fine.image.shape == (680, 840, 3)
    assert coarse.image.shape == (340, 420, 3)
    assert coarse.tissue.mean() == pytest.approx(fine.tissue.mean(), abs=0.15)


def test_refusals(paint_small):
    with pytest.raises(UsageError, match="too small"):
        paint_small(size_um=(100.0, 300.0))
    with pytest.raises(UsageError, match="no artefact is called 'hair'"):
        paint_small(artefacts=("hair",))
