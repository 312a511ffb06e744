"""Defocus over a micrograph: nodes of a grid over x, y and time, and how they are fitted to the rows of its cells.

The defocus of a row (a cell, in one direction) is linear in the unknowns: nodes, and the two numbers of the
astigmatism. So the best surface is found by scoring: Newton's method with the curvature that is expected of the
rings. What a plane in space that is constant in time cannot do is held back by a prior, so nodes that the rings say
little of follow the others.

Weak rings fit steep slopes as well as none. So every surface is fitted level too, and a slope is believed where the
evidence for it, the likelihood averaged over all slopes that specimens have, is greater by far.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from verglas.algo.ctf.search import FilterBank
from verglas.algo.ctf.spectra import CellSpectra

FloatArray = npt.NDArray[np.floating]

BENDING_ANGSTROM = 100.0
"""Standard deviation of what is no plane, Å."""

USUAL_SLOPE = 0.5
"""Standard deviation of the slopes of specimens along x and y; a tilt of 27 degrees has this one."""

LEVEL_SLOPE = 0.02
"""And of those that count as level: one degree."""

LEAST_EVIDENCE = 3.0
"""Logarithm of the odds from which on a slope is believed."""

_ASTIGMATISM = 600.0  # standard deviation of each of its two numbers, Å
_ROUNDS = 12


@dataclass(frozen=True, eq=False)
class SurfaceModel:
    """What the unknowns are.

    Parameters
    ----------
    nodes
        Along x, y and time.
    design
        `(r, p)` defocus of each row for each unknown: the nodes, time slowest and x fastest, then a and b of the
        astigmatism a cos 2α + b sin 2α.
    plane
        `(n, 3)` nodes of the surfaces 1, x and y, x and y in Å from the image's centre.
    """

    nodes: tuple[int, int, int]
    design: FloatArray
    plane: FloatArray


@dataclass(frozen=True, eq=False)
class SurfaceFit:
    """A surface and how well the rings know it.

    Parameters
    ----------
    values
        `(p,)` the unknowns, Å.
    covariance
        `(p, p)` Å².
    score
        Correlation in standard deviations of noise.
    evidence
        Logarithm of the likelihood averaged over what the prior allows, but for a constant.
    """

    values: FloatArray
    covariance: FloatArray
    score: float
    evidence: float


def interpolation_weights(shares: FloatArray, nodes: int) -> FloatArray:
    """`(g, n)` weights of equally spaced nodes from edge to edge, for places from 0 to 1."""
    if nodes == 1:
        return np.ones((len(shares), 1))
    place = np.clip(shares, 0, 1) * (nodes - 1)
    return np.asarray(np.maximum(1 - np.abs(place[:, None] - np.arange(nodes)), 0))


def surface_weights(
    places: FloatArray, time: FloatArray, extent_angstrom: FloatArray, nodes: tuple[int, int, int]
) -> FloatArray:
    """`(g, n)` weights of the nodes at xy places in Å from the image's centre."""
    x, y, t = (
        interpolation_weights(shares, count)
        for shares, count in zip([*(places / extent_angstrom + 0.5).T, time], nodes, strict=True)
    )
    return np.asarray(np.einsum("gt,gy,gx->gtyx", t, y, x).reshape(len(places), -1))


def make_model(cells: CellSpectra, nodes: tuple[int, int, int]) -> SurfaceModel:
    """Lay a grid of nodes over a micrograph."""
    spectra = cells.spectra
    turn = np.deg2rad(2 * spectra.direction_deg)
    weights = surface_weights(cells.places, cells.time, cells.extent_angstrom, nodes)
    sectors = len(turn)
    design = np.concatenate(
        [
            np.repeat(weights, sectors, axis=0),
            np.tile(np.stack([np.cos(turn), np.sin(turn)], axis=1), (len(weights), 1)),
        ],
        axis=1,
    )
    line = [np.linspace(-0.5, 0.5, count) if count > 1 else np.zeros(1) for count in nodes]
    _, y, x = (axis.ravel() for axis in np.meshgrid(line[2], line[1], line[0], indexing="ij"))
    plane = np.stack([np.ones_like(x), x * cells.extent_angstrom[0], y * cells.extent_angstrom[1]], axis=1)
    return SurfaceModel(nodes, design, plane)


def fit_surface(bank: FilterBank, model: SurfaceModel, start: FloatArray) -> SurfaceFit:
    """Climb from a start to the best surface near it, or to the best level one where a slope is not evident.

    Parameters
    ----------
    bank
        Of all rows.
    model
        The unknowns.
    start
        `(p,)` Å.
    """
    usual = _make_prior(model, USUAL_SLOPE, BENDING_ANGSTROM)
    free = _climb(bank, model, start, usual, usual)
    plane = np.linalg.pinv(model.plane) @ free.values[:-2]
    flat = np.concatenate([model.plane[:, 0] * plane[0], free.values[-2:]])
    level = _climb(bank, model, flat, _make_prior(model, LEVEL_SLOPE, LEVEL_SLOPE * BENDING_ANGSTROM), usual)
    return free if free.evidence > level.evidence + LEAST_EVIDENCE else level


def _climb(
    bank: FilterBank, model: SurfaceModel, start: FloatArray, prior: FloatArray, usual: FloatArray
) -> SurfaceFit:
    """Newton's method under a prior; the covariance is that under the usual one."""
    values = np.asarray(start, dtype=float)
    score = _Score(bank, model.design)
    goal = score.gain(values) - 0.5 * values @ prior @ values
    for _ in range(_ROUNDS):
        gradient, hessian = score.slope(values)
        step = np.linalg.solve(hessian + prior, gradient - prior @ values)
        step *= min(1.0, 400.0 / max(float(np.abs(model.design @ step).max()), 1e-9))
        for _ in range(5):
            tried = values + step
            reached = score.gain(tried) - 0.5 * tried @ prior @ tried
            if reached > goal:
                break
            step /= 3
        else:
            break
        values, improved, goal = tried, reached - goal, reached
        if improved < 1e-4 * max(goal, 1.0) and float(np.abs(step).max()) < 1.0:
            break
    _, hessian = score.slope(values)
    evidence = goal + 0.5 * (np.linalg.slogdet(prior)[1] - np.linalg.slogdet(hessian + prior)[1])
    return SurfaceFit(values, np.linalg.inv(hessian + usual), score.total(values), float(evidence))


def fit_plane(model: SurfaceModel, fit: SurfaceFit) -> tuple[FloatArray, FloatArray]:
    """Mean defocus and slopes along x and y of a surface `(3,)`, and their covariance `(3, 3)`."""
    inverse = np.linalg.pinv(model.plane)
    count = len(model.plane)
    return inverse @ fit.values[:count], inverse @ fit.covariance[:count, :count] @ inverse.T


def _make_prior(model: SurfaceModel, slope: float, bending_angstrom: float) -> FloatArray:
    """Inverse covariance of the unknowns: nothing is said of the mean."""
    count = len(model.plane)
    inverse = np.linalg.pinv(model.plane)
    bent = np.eye(count) - model.plane @ inverse
    prior = np.zeros((count + 2, count + 2))
    prior[:count, :count] = bent / bending_angstrom**2 + inverse[1:].T @ inverse[1:] / slope**2
    prior[count:, count:] = np.eye(2) / _ASTIGMATISM**2
    # An axis with one node has no slope, so its column of the plane is zero; a little keeps the rest regular.
    return prior + 1e-12 * np.eye(count + 2)


class _Score:
    """Likelihood of a surface, the strength of the rings at its best value."""

    def __init__(self, bank: FilterBank, design: FloatArray) -> None:
        self.bank, self.design = bank, design
        self.rows = np.arange(len(bank.weight))

    def total(self, values: FloatArray) -> float:
        correlation, norm = self._sum(values)
        return correlation / norm**0.5 if norm > 0 else 0.0

    def gain(self, values: FloatArray) -> float:
        """Gain of logarithm of the likelihood over no rings at all."""
        return 0.5 * max(self.total(values), 0.0) ** 2

    def slope(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Gradient `(p,)`, and the expected curvature `(p, p)`."""
        defocus = self.design @ values
        correlation, norm = self._sum(values)
        strength = max(correlation / norm, 1e-6) if norm > 0 else 1e-6
        step = self.bank.grid.step
        after, before = self._look(defocus + step), self._look(defocus - step)
        derivative = (strength * (after[0] - before[0]) - 0.5 * strength**2 * (after[1] - before[1])) / (
            2 * step
        )
        curvature = strength**2 * self.bank.weight * self._look(defocus)[2]
        return self.design.T @ derivative, (self.design * curvature[:, None]).T @ self.design

    def _sum(self, values: FloatArray) -> tuple[float, float]:
        correlation, norm, _ = self._look(self.design @ values)
        return float(correlation.sum()), float(norm.sum())

    def _look(self, defocus: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Correlation, its norm and curvature at each row's defocus `(r,)`, by cubic interpolation."""
        bank = self.bank
        place = np.clip((defocus - bank.grid.start) / bank.grid.step, 1, len(bank.norm) - 2.000001)
        low = place.astype(int)
        t = place - low
        kernel = np.stack(
            [
                t * (t * (2 - t) - 1) / 2,
                (t * t * (3 * t - 5) + 2) / 2,
                t * (t * (4 - 3 * t) + 1) / 2,
                t * t * (t - 1) / 2,
            ]
        )
        columns = low + np.arange(-1, 3)[:, None]
        correlation = (kernel * bank.correlation[self.rows, columns]).sum(axis=0)
        norm = bank.weight * (kernel * bank.norm[columns]).sum(axis=0)
        return correlation, norm, (kernel * bank.curvature[columns]).sum(axis=0)
