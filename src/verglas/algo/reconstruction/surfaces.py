"""Where the particles of a slab lie."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

from verglas.model.weights import DefocusSurface

FEWEST = 6
"""Particles that a curved surface needs; fewer make a plane."""

FloatArray = npt.NDArray[np.float64]


def fit_surface(
    low_angstrom: float, high_angstrom: float, particles_angstrom: Tensor | None = None
) -> DefocusSurface:
    """Fit the height of a slab's particles.

    A quadratic surface through more than six of them, robust against those that lie off it (Tukey's biweight,
    reweighted until it stands still); the mean height of fewer; without any the middle of the slab.

    Parameters
    ----------
    low_angstrom, high_angstrom
        Faces of the slab, Å.
    particles_angstrom
        `(n, 3)` xyz of all particles; those within the slab count.
    """
    middle = (low_angstrom + high_angstrom) / 2
    places = (
        np.empty((0, 3)) if particles_angstrom is None else particles_angstrom.cpu().numpy().astype(float)
    )
    places = places[(places[:, 2] >= low_angstrom) & (places[:, 2] < high_angstrom)]
    coefficients = np.zeros(6)
    coefficients[0] = places[:, 2].mean() if len(places) else middle
    if len(places) > FEWEST:
        coefficients = _fit_quadratic(places)
    c0, c1, c2, c3, c4, c5 = coefficients.tolist()
    return DefocusSurface(low_angstrom, high_angstrom, (c0, c1, c2, c3, c4, c5), len(places))


def _fit_quadratic(places: FloatArray) -> FloatArray:
    # Columns of one size make the fit well conditioned; directions that the particles do not span stay flat.
    scale = max(float(np.abs(places[:, :2]).max()), 1.0)
    x, y = (places[:, :2] / scale).T
    columns = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    weights = np.ones(len(places))
    solution = np.zeros(6)
    for _ in range(_ROUNDS):
        root = np.sqrt(weights)
        solution = np.linalg.lstsq(columns * root[:, None], places[:, 2] * root, rcond=1e-3)[0]
        residuals = places[:, 2] - columns @ solution
        spread = 1.4826 * float(np.median(np.abs(residuals)))
        if spread < 1e-6:
            break
        weights = np.clip(1 - (residuals / (_TUKEY * spread)) ** 2, 0, None) ** 2
    return np.asarray(solution / np.array([1, scale, scale, scale**2, scale**2, scale**2]))


_ROUNDS = 20
_TUKEY = 4.685
