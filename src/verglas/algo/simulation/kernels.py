"""The hot loops: sums of Gaussians onto grids. They release the interpreter's lock and hold no state.

A Gaussian is drawn out to `CUTOFF_SIGMAS` standard deviations along each axis. What lies outside is lost:
1.1e-6 of the weight in two dimensions and 1.7e-6 in three, and a step of 4e-6 of the Gaussian's peak.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

CUTOFF_SIGMAS = 5.0

Array = npt.NDArray[Any]


@njit(nogil=True, cache=True)
def _fill_profile(
    profile: Array, place: float, sigma: float, pixel: float, average: bool, size: int
) -> tuple[int, int]:
    """Write a normalised 1-D Gaussian (per Å) at the pixels around `place` (pixels); return their range."""
    first = max(0, math.ceil(place - CUTOFF_SIGMAS * sigma / pixel))
    stop = min(size, math.floor(place + CUTOFF_SIGMAS * sigma / pixel) + 1)
    if average:
        first = max(0, math.ceil(place - CUTOFF_SIGMAS * sigma / pixel - 0.5))
        stop = min(size, math.floor(place + CUTOFF_SIGMAS * sigma / pixel + 0.5) + 1)
    scale = pixel / (math.sqrt(2.0) * sigma)
    for i in range(first, stop):
        if average:
            upper = math.erf((i + 0.5 - place) * scale)
            profile[i - first] = (upper - math.erf((i - 0.5 - place) * scale)) / (2.0 * pixel)
        else:
            u = (i - place) * scale
            profile[i - first] = math.exp(-u * u) / (math.sqrt(2.0 * math.pi) * sigma)
    return first, stop


@njit(nogil=True, cache=True)
def add_projections(
    layers: Array,
    touched: Array,
    rotations: Array,
    places: Array,
    positions: Array,
    weights: Array,
    sigmas: Array,
    stretch: float,
    pixel: float,
    centre: tuple[float, float],
    depth_start: float,
    depth_step: float,
    own_depth: bool,
    average: bool,
) -> None:
    """Add projections of copies of one set of Gaussians to the layers of a view.

    Parameters
    ----------
    layers
        `(l, y, x)` projected potential, V·Å, by depth along the beam; changed in place.
    touched
        `(l,)` set to True where a layer got anything.
    rotations, places
        `(m, 3, 3)` and `(m, 3)`: for each copy, the matrix and the offset (Å) that take the body's frame to
        the image frame, depth last.
    positions, weights, sigmas
        The Gaussians in the body's frame.
    stretch
        Magnification of lengths in the image.
    pixel, centre
        Side of a pixel (Å) and the pixel (y, x) of the image frame's origin.
    depth_start, depth_step
        Lower edge of the first layer and height of a layer, Å; what lies in no layer is left out.
    own_depth
        True sorts each Gaussian by its own depth, False all of a copy by the depth of the copy's origin.
    average
        True averages over each pixel's area, False samples at its centre.
    """
    count, height, width = layers.shape
    reach = 2 * math.ceil(CUTOFF_SIGMAS * sigmas.max() * stretch / pixel) + 4
    row = np.empty(reach)
    column = np.empty(reach)
    for copy in range(len(places)):
        r = rotations[copy]
        layer = math.floor((places[copy, 2] - depth_start) / depth_step)
        if not own_depth and (layer < 0 or layer >= count):
            continue
        for i in range(len(weights)):
            px, py, pz = positions[i, 0], positions[i, 1], positions[i, 2]
            x = (r[0, 0] * px + r[0, 1] * py + r[0, 2] * pz + places[copy, 0]) / pixel + centre[1]
            y = (r[1, 0] * px + r[1, 1] * py + r[1, 2] * pz + places[copy, 1]) / pixel + centre[0]
            sigma = sigmas[i] * stretch
            margin = CUTOFF_SIGMAS * sigma / pixel + 1
            if x < -margin or y < -margin or x > width + margin or y > height + margin:
                continue
            if own_depth:
                depth = r[2, 0] * px + r[2, 1] * py + r[2, 2] * pz + places[copy, 2]
                layer = math.floor((depth - depth_start) / depth_step)
                if layer < 0 or layer >= count:
                    continue
            x0, x1 = _fill_profile(row, x, sigma, pixel, average, width)
            y0, y1 = _fill_profile(column, y, sigma, pixel, average, height)
            if x1 <= x0 or y1 <= y0:
                continue
            touched[layer] = True
            weight = weights[i] * stretch * stretch
            for j in range(y0, y1):
                value = weight * column[j - y0]
                for k in range(x0, x1):
                    layers[layer, j, k] += value * row[k - x0]


@njit(nogil=True, cache=True)
def add_volume(
    volume: Array,
    first_section: int,
    positions: Array,
    weights: Array,
    sigmas: Array,
    voxel: float,
    centre: tuple[float, float, float],
    average: bool,
) -> None:
    """Add Gaussians to `(z, y, x)` sections of a volume; the first has the number `first_section`."""
    depth, height, width = volume.shape
    reach = 2 * math.ceil(CUTOFF_SIGMAS * sigmas.max() / voxel) + 4
    row = np.empty(reach)
    column = np.empty(reach)
    pillar = np.empty(reach)
    for i in range(len(weights)):
        sigma = sigmas[i]
        z = positions[i, 2] / voxel + centre[0] - first_section
        margin = CUTOFF_SIGMAS * sigma / voxel + 1
        if z < -margin or z > depth + margin:
            continue
        z0, z1 = _fill_profile(pillar, z, sigma, voxel, average, depth)
        y0, y1 = _fill_profile(column, positions[i, 1] / voxel + centre[1], sigma, voxel, average, height)
        x0, x1 = _fill_profile(row, positions[i, 0] / voxel + centre[2], sigma, voxel, average, width)
        for s in range(z0, z1):
            for j in range(y0, y1):
                value = weights[i] * pillar[s - z0] * column[j - y0]
                for k in range(x0, x1):
                    volume[s, j, k] += value * row[k - x0]


@njit(nogil=True, cache=True)
def sum_transform(
    frequencies: Array, positions: Array, weights: Array, sigmas: Array, real: Array, imaginary: Array
) -> None:
    """Write the Fourier transform of Gaussians at `(m, 3)` frequencies (xyz, 1/Å) to two `(m,)` arrays."""
    for f in range(len(frequencies)):
        kx, ky, kz = frequencies[f, 0], frequencies[f, 1], frequencies[f, 2]
        square = kx * kx + ky * ky + kz * kz
        a = 0.0
        b = 0.0
        for i in range(len(weights)):
            phase = -2.0 * math.pi * (kx * positions[i, 0] + ky * positions[i, 1] + kz * positions[i, 2])
            size = weights[i] * math.exp(-2.0 * math.pi**2 * sigmas[i] * sigmas[i] * square)
            a += size * math.cos(phase)
            b += size * math.sin(phase)
        real[f] = a
        imaginary[f] = b
