"""Simulated micrographs of vesicles with known truth."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from verglas.benchmarks.membrane_cases import PIXEL, bilayer, measure_distance

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class VesicleCase:
    """A micrograph in which membranes are bright, `(y, x)` each; masks are 1 near the true curves."""

    image: FloatArray
    membranes: FloatArray
    mask: FloatArray
    pixel_size_angstrom: float


def draw_ring(centre_xy: tuple[float, float], radius: float, waves: tuple[float, float, float]) -> FloatArray:
    """Points `(m, 2)` xy of a closed wavy curve, radius (1 + Σ w cos(k angle))."""
    angle = np.linspace(0, 2 * np.pi, int(2 * np.pi * radius * 8))
    r = radius * (1 + sum(one * np.cos((k + 2) * angle + k) for k, one in enumerate(waves)))
    return np.stack([centre_xy[0] + r * np.cos(angle), centre_xy[1] + r * np.sin(angle)], axis=1)


def make_micrograph(
    size: int,
    noise: float,
    *,
    rings: int = 1,
    gap: float = 18.0,
    sigma: float = 3.5,
    seed: int = 0,
    opposite: bool = False,
) -> VesicleCase:
    """Simulate a micrograph of one vesicle of 190 to 230 pixels radius, or of two that cross.

    One with the `opposite` noise errs by as much to the other side, but for what a fit itself gets wrong.
    """
    rng = np.random.default_rng(seed)
    y, x = (one.ravel().astype(float) for one in np.mgrid[:size, :size])
    points = np.stack([x, y], axis=1)
    middle = size / 2
    centres = (
        [(middle + 5.3, middle - 8.6)] if rings == 1 else [(middle - 90, middle), (middle + 100, middle + 20)]
    )
    membranes, mask = np.zeros(size * size), np.zeros(size * size)
    for number, centre in enumerate(centres):
        radius = 210.0 - 40 * number if rings == 1 else 170.0 - 25 * number
        ring = draw_ring(centre, radius, (0.05, 0.025, 0.01))
        distance = np.abs(measure_distance(ring, points))
        membranes += bilayer(distance, gap, sigma, sigma)
        mask = np.maximum(mask, (distance < 8).astype(float))
    image = membranes + (-1 if opposite else 1) * rng.normal(0, noise, len(membranes))
    shape = (size, size)
    return VesicleCase(image.reshape(shape), membranes.reshape(shape), mask.reshape(shape), PIXEL)
