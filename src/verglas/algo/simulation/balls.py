"""Tilt series of balls in a grainy slab, by direct sums and without a CTF: cheap truth for tracking and alignment."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from verglas.algo.simulation.imaging import slab_transmission
from verglas.algo.simulation.render import project_scatterers
from verglas.algo.simulation.scatterers import FloatArray, Scatterers
from verglas.algo.simulation.supports import GOLD_FREE_PATH_ANGSTROM
from verglas.model import TiltSeries
from verglas.ops.geometry import series_matrices

_AMPLITUDE_CONTRAST = 0.1
_RADIANS_PER_V_A = 6.5e-4  # interaction constant at 300 kV
_FINER = 4


@dataclass(frozen=True, eq=False)
class BallSpecimen:
    """What is in the slab.

    Parameters
    ----------
    balls_angstrom
        `(k, 4)` xyz of the centres and radii of balls that take electrons away.
    free_paths_angstrom
        `(k,)` length in each ball after which 1/e of the electrons is left: 200 Å for gold, thousands for ice.
    grains
        Molecules, carbon and what else gives the slab its texture, in Å and V·Å³.
    thickness_angstrom
        Of the slab.
    """

    balls_angstrom: FloatArray
    free_paths_angstrom: FloatArray
    grains: Scatterers = field(default_factory=lambda: Scatterers(np.empty((0, 3)), np.empty(0), np.empty(0)))
    thickness_angstrom: float = 1000.0


def gold_free_paths(count: int) -> FloatArray:
    """`(count,)` free path in gold, Å."""
    return np.full(count, GOLD_FREE_PATH_ANGSTROM)


def draw_ball_series(
    specimen: BallSpecimen, truth: TiltSeries, *, seed: int, blank: npt.ArrayLike = ()
) -> npt.NDArray[np.float32]:
    """Draw the views of a series.

    Parameters
    ----------
    specimen
        What is in the slab.
    truth
        Geometry and exposures of the views.
    seed
        Chooses the noise.
    blank
        Views that the beam did not reach.

    Returns
    -------
    ndarray
        `(n, y, x)` electrons a pixel.
    """
    pixel = truth.pixel_size_angstrom
    matrices = series_matrices(truth.geometry).numpy()
    hidden = set(np.asarray(blank, dtype=int).tolist())
    stack = np.empty((len(truth), *truth.image_shape), np.float32)
    for view, matrix in enumerate(matrices):
        rng = np.random.default_rng([seed, 6, view])
        cosine = abs(float(matrix[2, 2]))
        expected = np.full(truth.image_shape, truth.exposure_e_per_a2[view] * pixel**2)
        expected *= slab_transmission(specimen.thickness_angstrom, cosine)
        potential = project_scatterers(specimen.grains, matrix, truth.image_shape, pixel)
        expected *= np.exp(-2 * _AMPLITUDE_CONTRAST * _RADIANS_PER_V_A * potential)
        expected *= _pass_balls(specimen, matrix, truth.image_shape, pixel)
        stack[view] = rng.poisson(expected * (1e-3 if view in hidden else 1.0))
    return stack


def _pass_balls(
    specimen: BallSpecimen, matrix: FloatArray, shape: tuple[int, int], pixel: float
) -> FloatArray:
    """Share of the electrons that pass all balls, the mean over 4 x 4 points a pixel."""
    passed = np.ones(shape)
    places = specimen.balls_angstrom[:, :3] @ matrix[:2, :3].T + matrix[:2, 3]
    radii = specimen.balls_angstrom[:, 3]
    steps = (np.arange(_FINER) - (_FINER - 1) / 2) / _FINER
    for place, radius, path in zip(places, radii, specimen.free_paths_angstrom, strict=True):
        centre = place[::-1] / pixel + np.array([n // 2 for n in shape])
        low = np.maximum(np.floor(centre - radius / pixel).astype(int), 0)
        high = np.minimum(np.ceil(centre + radius / pixel).astype(int) + 1, shape)
        if (low >= high).any():
            continue
        y, x = (
            (np.add.outer(np.arange(a, b), steps).ravel() - c) * pixel
            for a, b, c in zip(low, high, centre, strict=True)
        )
        chord = 2 * np.sqrt(np.maximum(radius**2 - x**2 - y[:, None] ** 2, 0.0))
        blocks = np.exp(-chord / path).reshape(high[0] - low[0], _FINER, high[1] - low[1], _FINER)
        passed[low[0] : high[0], low[1] : high[1]] *= blocks.mean(axis=(1, 3))
    return passed
