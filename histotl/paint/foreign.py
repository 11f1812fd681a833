"""Tissue that no colon model has seen: fat, and muscle. For out-of-distribution checks."""

from __future__ import annotations

import numpy as np
from scipy.spatial import KDTree

from histotl.paint.noise import enlarge, smooth_noise, soft_step
from histotl.paint.nuclei import NucleusBox
from histotl.paint.values import Canvas, Mask

_HALF = 2
"""The honeycomb is drawn on a grid this many pixels wide; its walls are soft anyway."""


def paint_fat(canvas: Canvas, tissue: Mask, box: NucleusBox, rng: np.random.Generator) -> None:
    """Adipose tissue: a honeycomb of empty cells some 70 µm wide with thin pink walls and few flat nuclei."""
    h, w = canvas.shape
    px = 1 / canvas.mpp
    pitch = 68 * px
    lattice = np.mgrid[-1 : h / pitch + 2, -1 : w / pitch + 2].reshape(2, -1)[::-1].T
    centres = (lattice + rng.uniform(-0.38, 0.38, lattice.shape)) * pitch
    grid = np.mgrid[0 : h // _HALF + 3, 0 : w // _HALF + 3].astype(np.float64) * _HALF
    points = np.stack([grid[1].ravel(), grid[0].ravel()], axis=1)
    wobble = 3 * px * np.stack([smooth_noise(rng, grid.shape[1:], 12 * px / _HALF).ravel() for _ in range(2)], axis=1)
    near = np.asarray(KDTree(centres).query(points + wobble, k=2)[0])
    gap = (near[:, 1] - near[:, 0]).reshape(grid.shape[1:]).astype(np.float32)
    wall = enlarge(np.clip(1.7 - gap / np.float32(3.0 * px), 0, 1).astype(np.float32), (h, w), _HALF) * tissue
    canvas.second[...] = wall * 0.5 + 0.035 * tissue
    canvas.first[...] = wall * 0.12 + 0.005 * tissue
    xy = rng.uniform((0, 0), (w - 1, h - 1), (int(4000 * h * w * (canvas.mpp / 1000) ** 2), 2))
    col, row = xy.T.astype(np.intp)
    xy = xy[wall[row, col] > 0.8]
    box.print(canvas.first, "spindle", xy, rng.uniform(0, np.pi, len(xy)), rng)


def paint_muscle(canvas: Canvas, tissue: Mask, box: NucleusBox, rng: np.random.Generator) -> None:
    """Smooth muscle: dense parallel fibres, gently waved, with long nuclei along them."""
    h, w = canvas.shape
    px = 1 / canvas.mpp
    y, x = np.ogrid[0:h, 0:w]
    angle = rng.uniform(0, np.pi)
    across = (y * np.float32(np.cos(angle)) - x * np.float32(np.sin(angle))).astype(np.float32) / np.float32(px)
    across += 9 * smooth_noise(rng, (h, w), 110 * px)
    across += 1.2 * smooth_noise(rng, (h, w), 14 * px)
    fibre = np.sin(across * np.float32(2 * np.pi / 9.0)) + 0.5 * np.sin(across * np.float32(2 * np.pi / 3.7))
    bundle = soft_step(np.sin(across * np.float32(2 * np.pi / 95.0)) + 0.93, 0.2)
    solid = tissue * (0.15 + 0.85 * bundle)
    canvas.second[...] = solid * (0.50 + 0.09 * fibre)
    canvas.first[...] = solid * (0.06 + 0.01 * fibre)
    xy = rng.uniform((0, 0), (w - 1, h - 1), (int(1500 * h * w * (canvas.mpp / 1000) ** 2), 2))
    col, row = xy.T.astype(np.intp)
    xy = xy[tissue[row, col]]
    box.print(canvas.first, "spindle", xy, angle + rng.normal(0, 0.12, len(xy)), rng)
