"""A tilt series of bodies made of Gaussians, whose projections, transforms and turns are all known by formula."""

from pathlib import Path

import numpy as np
import torch

from verglas.algo.averaging.views import SeriesViews, invert_views
from verglas.model import ImageReference, Optics, TiltSeries
from verglas.ops.rotation import euler_to_matrices, random_rotations

PIXEL = 10.0
SIDE = 192
WIDTH = 14.0
BALLS = np.array([[40, 0, 0], [-30, 30, 10], [0, -45, 20], [10, 20, -50], [-35, -20, -25], [20, 40, 45.0]])
HEIGHTS = np.array([1.0, 1.4, 0.8, 1.2, 1.0, 0.6])


def make_series(**changes) -> TiltSeries:
    tilts = np.arange(-60.0, 61.0, 10.0)
    fields = {
        "name": "TS",
        "optics": Optics(PIXEL),
        "image_shape": (SIDE, SIDE - 4),
        "images": tuple(ImageReference(Path("TS.mrc"), row) for row in range(len(tilts))),
        "nominal_tilt_deg": tilts,
        "y_tilt_deg": tilts,
        "x_tilt_deg": np.full(len(tilts), 2.0),
        "z_rot_deg": np.full(len(tilts), 85.0),
        "x_shift_angstrom": np.linspace(-33, 41, len(tilts)),
        "y_shift_angstrom": np.linspace(17, -28, len(tilts)),
    }
    return TiltSeries(**(fields | changes))


def draw_poses(count: int, seed: int = 0):
    """Positions that no view loses, and rotations."""
    rng = np.random.default_rng(seed)
    positions = rng.uniform(-1, 1, (count, 3)) * [250, 550, 250]
    return torch.from_numpy(positions), random_rotations(count, torch.Generator().manual_seed(seed))


def view_matrix(series: TiltSeries, row: int) -> np.ndarray:
    """Specimen to view, written out with trigonometry."""
    a, b, c = np.deg2rad([series.x_tilt_deg[row], series.y_tilt_deg[row], series.z_rot_deg[row]])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def draw_views(
    series: TiltSeries, positions, rotations, *, noise: float = 0.0, seed: int = 0
) -> list[torch.Tensor]:
    """Projections of all bodies, dense is dark."""
    rng = np.random.default_rng(seed)
    height, width = series.image_shape
    x = (np.arange(width) - width // 2) * PIXEL
    y = (np.arange(height) - height // 2) * PIXEL
    views = []
    for row in range(len(series)):
        matrix = view_matrix(series, row)
        shift = np.array([series.x_shift_angstrom[row], series.y_shift_angstrom[row]])
        view = rng.normal(0, 1, (height, width)) * noise
        for position, rotation in zip(np.asarray(positions), np.asarray(rotations), strict=True):
            places = (BALLS @ rotation.T + position) @ matrix[:2].T + shift
            across = np.exp(-0.5 * ((x - places[:, :1]) / WIDTH) ** 2)
            along = np.exp(-0.5 * ((y - places[:, 1:]) / WIDTH) ** 2)
            view -= np.einsum("b,by,bx->yx", HEIGHTS, along, across)
        views.append(torch.from_numpy(view.astype(np.float32)))
    return views


def open_views(positions, rotations, *, noise: float = 0.0, seed: int = 0, **changes) -> SeriesViews:
    series = make_series(**changes)
    return invert_views(draw_views(series, positions, rotations, noise=noise, seed=seed), series, PIXEL)


def draw_body(box: int, rotation=None, shift_px=(0.0, 0.0, 0.0)) -> torch.Tensor:
    """The body alone, dense is bright."""
    turned = BALLS if rotation is None else BALLS @ np.asarray(rotation).T
    centres = turned / PIXEL + np.asarray(shift_px)
    line = np.arange(box) - box // 2
    parts = [np.exp(-0.5 * ((line - centres[:, axis, None]) / (WIDTH / PIXEL)) ** 2) for axis in range(3)]
    return torch.from_numpy(
        np.einsum("b,bz,by,bx->zyx", HEIGHTS, parts[2], parts[1], parts[0]).astype(np.float32)
    )


def no_turn() -> torch.Tensor:
    return euler_to_matrices(torch.zeros(1, 3, dtype=torch.float64))
