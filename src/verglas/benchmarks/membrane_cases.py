"""Simulated membranes with known truth, drawn from the distance to a densely sampled curve."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial import cKDTree

from verglas.io.mrc import write_mrc
from verglas.io.star import write_star
from verglas.units import electron_wavelength_angstrom

FloatArray = npt.NDArray[np.float64]

PIXEL = 2.0
_FAR = 40.0
"""Distance beyond which no membrane is drawn, pixels."""
_COARSE = 10
_FRINGES = 96


def sample_arc(centre_xy: tuple[float, float], theta_deg: float, kappa: float, half: float) -> FloatArray:
    """Points `(m, 2)` xy of an arc, by stepping along its direction."""
    steps = np.arange(0, half, 0.1)
    theta = np.deg2rad(theta_deg)
    sides = []
    for sign in (-1, 1):
        angle = theta + sign * kappa * steps
        path = sign * np.cumsum(np.stack([np.sin(angle), np.cos(angle)], axis=1), axis=0) * 0.1
        sides.append(path[:: -1 if sign < 0 else 1])
    return np.asarray(np.concatenate(sides) + np.array(centre_xy))


def sample_bezier(control_xy: Sequence[tuple[float, float]], extend: float = 0.4) -> FloatArray:
    """Points `(m, 2)` xy of a cubic curve by de Casteljau's construction, run on beyond its ends."""
    t = np.linspace(-extend, 1 + extend, 4000)[:, None]
    points = [np.array(one, dtype=float) for one in control_xy]
    layer: list[Any] = points
    while len(layer) > 1:
        layer = [(1 - t) * a + t * b for a, b in pairwise(layer)]
    return np.asarray(layer[0])


def measure_distance(path_xy: FloatArray, points_xy: FloatArray) -> FloatArray:
    """Signed distance `(n,)` to the nearest of many points of a curve, positive to the left of x for growing y."""
    distance, nearest = _find_nearest(path_xy, points_xy)
    following = np.clip(nearest + 1, 1, len(path_xy) - 1)
    ahead = path_xy[following] - path_xy[following - 1]
    away = points_xy - path_xy[nearest]
    # The normal is (y of the tangent across x): (dx, -dy) in yx is (-dy, dx) in xy.
    side = np.sign(-away[:, 0] * ahead[:, 1] + away[:, 1] * ahead[:, 0])
    return np.asarray(distance * side)


def _find_nearest(path_xy: FloatArray, points_xy: FloatArray) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Return the distance `(n,)` to the nearest point of a path, at most `_FAR`, and its number."""
    distance, coarse = cKDTree(path_xy[::_COARSE]).query(points_xy, distance_upper_bound=_FAR)
    nearest = np.zeros(len(points_xy), dtype=np.int64)
    near = np.flatnonzero(distance < _FAR)
    distance = np.minimum(distance, _FAR)
    first = np.asarray(coarse, dtype=np.int64)[near] * _COARSE
    around = (first + np.arange(-_COARSE, _COARSE + 1)[:, None]) % len(path_xy)
    x, y = (path_xy[around, k] - points_xy[near, k] for k in (0, 1))
    squares = x * x + y * y
    best = squares.argmin(axis=0)
    nearest[near] = around[best, np.arange(len(near))]
    distance[near] = np.sqrt(squares[best, np.arange(len(near))])
    return distance, nearest


def bilayer(
    distance: FloatArray, gap: float, sigma1: float, sigma2: float, height2: float = 1.0
) -> FloatArray:
    """Two Gaussians, of height 1 unless the one at positive distance has another."""
    return np.asarray(
        np.exp(-0.5 * ((distance + gap / 2) / sigma1) ** 2)
        + height2 * np.exp(-0.5 * ((distance - gap / 2) / sigma2) ** 2)
    )


@dataclass(frozen=True)
class Look:
    """What is simulated: curves in the frame of the class, noise, and what else there is.

    Parameters
    ----------
    curves
        Each `(m, 2)` xy points from the middle of the box.
    snr
        Variance of the membranes over that of the noise.
    coloured
        Whether the noise has more power at low frequency, and a transfer function is applied to all but it.
    ctf
        Whether a transfer function is applied.
    protein
        Whether a blob of the membrane's contrast lies on it.
    gap, sigma
        Distance of the leaflets and their width, pixels.
    outer
        Width and height of the leaflet on the side of positive distances, where it differs.
    """

    curves: tuple[FloatArray, ...]
    snr: float
    coloured: bool = False
    ctf: bool = False
    protein: bool = False
    gap: float = 20.0
    sigma: float = 4.0
    outer: tuple[float, float] | None = None

    def draw(self, points: FloatArray) -> FloatArray:
        """Return the grey `(n,)` of all membranes at points `(n, 2)` xy of the class."""
        width, height = self.outer or (self.sigma, 1.0)
        distances = [measure_distance(path, points) for path in self.curves]
        grey: FloatArray = np.sum(
            [bilayer(one, self.gap, self.sigma, width, height) for one in distances], axis=0
        )
        return grey


@dataclass(frozen=True, eq=False)
class Case:
    """Simulated particles and what they are made of, `(n, y, x)` each."""

    folder: Path
    images: FloatArray
    membranes: FloatArray
    proteins: FloatArray
    scales: FloatArray


def make_case(folder: Path, look: Look, *, count: int, box: int = 192, seed: int = 0) -> Case:
    """Simulate particles of one class with exact poses, and their average; write all that the commands need."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    psi, origin = rng.uniform(-180, 180, count), rng.uniform(-6, 6, (count, 2))
    scales = rng.uniform(0.6, 1.4, count)
    defocus = rng.uniform(12000, 24000, count)
    membranes = np.empty((count, box, box))
    proteins = np.zeros((count, box, box))
    # Fringes come from beyond the box too, as a micrograph does not end there.
    wide = box + _FRINGES if look.ctf else box
    first = wide // 2 - box // 2
    inner = (slice(first, first + box), slice(first, first + box))
    for n in range(count):
        reference = _reference_points(wide, psi[n], origin[n])
        parts = [look.draw(reference)]
        parts += [_draw_protein(look.curves[0], reference, rng)] if look.protein else []
        drawn = [scales[n] * part.reshape(wide, wide) for part in parts]
        drawn = [_apply_ctf(one, defocus[n]) for one in drawn] if look.ctf else drawn
        membranes[n] = drawn[0][inner]
        if look.protein:
            proteins[n] = drawn[1][inner]
    noise = rng.normal(0, np.sqrt(membranes.var(axis=(1, 2)).mean() / look.snr), (count, box, box))
    if look.coloured:
        noise = np.array([_colour(one) for one in noise])
    case = Case(folder, membranes + proteins + noise, membranes, proteins, scales)
    _write_particles(case, psi, origin, defocus)
    _write_average(case, look, rng)
    return case


def _reference_points(box: int, psi_deg: float, origin: FloatArray) -> FloatArray:
    """Where each pixel of a particle lies in the frame of its class, xy from the middle."""
    axis = np.arange(box) - box // 2
    x, y = (one.ravel() for one in np.meshgrid(axis, axis))
    x, y = x + origin[0], y + origin[1]
    turn = np.deg2rad(psi_deg)
    return np.stack([np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y], axis=1)


def _draw_protein(path: FloatArray, points: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Draw a blob 40 px long and 50 wide that stands on the membrane, as bright as its leaflets."""
    middle = len(path) // 2 + int(rng.uniform(-200, 200))
    foot = path[middle]
    along = path[middle + 1] - path[middle - 1]
    along /= np.linalg.norm(along)
    away = points - foot
    s, d = away @ along, away @ np.array([-along[1], along[0]])
    return np.asarray(1 / (1 + np.exp((np.hypot(s / 20, (d - 12) / 25) - 1) * 12)))


def _apply_ctf(image: FloatArray, defocus: float) -> FloatArray:
    size = len(image)
    squares = np.add.outer(np.fft.fftfreq(size, PIXEL) ** 2, np.fft.rfftfreq(size, PIXEL) ** 2)
    wave = electron_wavelength_angstrom(300.0)
    phase = np.pi * wave * defocus * squares - np.pi / 2 * 2.7e7 * wave**3 * squares**2 + np.arcsin(0.1)
    return np.asarray(np.fft.irfft2(np.fft.rfft2(image) * np.sin(phase), image.shape))


def _colour(noise: FloatArray) -> FloatArray:
    """Noise with more power at low frequency, its variance kept."""
    size = len(noise)
    radius = np.hypot(*np.meshgrid(np.fft.rfftfreq(size), np.fft.fftfreq(size)))
    filtered = np.fft.irfft2(
        np.fft.rfft2(noise) * np.sqrt(1 + 8 * np.exp(-((radius / 0.05) ** 2))), noise.shape
    )
    return np.asarray(filtered * noise.std() / filtered.std())


def _write_particles(case: Case, psi: FloatArray, origin: FloatArray, defocus: FloatArray) -> None:
    count, box = len(psi), case.images.shape[-1]
    write_mrc(
        case.folder / "particles.mrcs",
        case.images.astype(np.float32),
        voxel_size_angstrom=PIXEL,
        is_stack=True,
    )
    optics = {
        "rlnOpticsGroup": [1],
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnVoltage": [300.0],
        "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.1],
        "rlnImagePixelSize": [PIXEL],
        "rlnImageSize": [box],
        "rlnImageDimensionality": [2],
    }
    rows = {
        "rlnImageName": [f"{n + 1:06d}@{case.folder / 'particles.mrcs'}" for n in range(count)],
        "rlnOpticsGroup": 1,
        "rlnAnglePsi": psi,
        "rlnOriginXAngst": origin[:, 0] * PIXEL,
        "rlnOriginYAngst": origin[:, 1] * PIXEL,
        "rlnClassNumber": 1,
        "rlnDefocusU": defocus,
        "rlnDefocusV": defocus,
        "rlnDefocusAngle": 0.0,
    }
    write_star(
        case.folder / "particles.star", {"optics": pd.DataFrame(optics), "particles": pd.DataFrame(rows)}
    )


def _write_average(case: Case, look: Look, rng: np.random.Generator) -> None:
    """Write an average as a classification gives it: the membrane in the frame of the class, with some noise."""
    box = case.images.shape[-1]
    points = _reference_points(box, 0.0, np.zeros(2))
    image = look.draw(points).reshape(box, box) + rng.normal(0, 0.15, (box, box))
    write_mrc(
        case.folder / "averages.mrcs",
        image[None].astype(np.float32),
        voxel_size_angstrom=PIXEL,
        is_stack=True,
    )
