"""Local alignment: a smooth field of shifts over the specimen and the tilts, where held-out beads call for one.

The field is the one of `LocalField`: a natural cubic spline over the specimen, here with a line over the views at
every node. Its roughness is restrained; how strongly, and whether there is a field at all, the beads
decide that the fit did not see. Places of the beads and shifts of the views are fitted with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from verglas.algo.tilt_alignment.bundle import (
    FEWEST_VIEWS,
    Freedom,
    draw_lines,
    fit_bundle,
    locate_beads,
    weigh_residuals,
)
from verglas.algo.tilt_alignment.geometry import ViewGeometry, find_known, project_points, view_matrices
from verglas.algo.tilt_alignment.selection import FOLDS, Trial
from verglas.ops.splines import spline_matrix

FloatArray = npt.NDArray[np.float64]

FEWEST_BEADS = 11
"""Fewer carry no local field."""

LEAST_GAIN = 0.03
"""A field must lower the held-out residual by this fraction."""

_NODES, _LINES = 5, 5
_ROUGHNESS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""How much a shift may bend from node to node, in standard deviations of a measurement."""

_PULL_PX = 10.0
_CUT = 5.0


@dataclass(frozen=True, eq=False)
class FittedField:
    """A local field of n views; lengths in pixels.

    Parameters
    ----------
    low_px, high_px
        xy of the first and the last node.
    shifts_px
        `(n, nodes_y, nodes_x, 2)` xy.
    """

    low_px: tuple[float, float]
    high_px: tuple[float, float]
    shifts_px: FloatArray


@dataclass(frozen=True, eq=False)
class LocalAlignment:
    """An alignment with a field.

    Parameters
    ----------
    geometry, points_px, residuals_px
        As of a `BundleFit`; the residuals are those that the field leaves.
    field
        The field.
    trial
        What it leaves of beads that it did not see.
    """

    geometry: ViewGeometry
    points_px: FloatArray
    residuals_px: FloatArray
    field: FittedField
    trial: Trial


def fit_local_field(
    tracks_px: FloatArray,
    geometry: ViewGeometry,
    points_px: FloatArray,
    start: ViewGeometry,
    freedom: Freedom,
) -> LocalAlignment | None:
    """Fit a local field to what a global alignment leaves.

    Parameters
    ----------
    tracks_px
        `(beads, n, 2)`; NaN where a bead was not measured.
    geometry, points_px
        The global alignment.
    start
        Nominal geometry with rough shifts.
    freedom
        Of the global alignment.

    Returns
    -------
    LocalAlignment or None
        None when there are too few beads, or those held out do not fit better by 3 percent.
    """
    known = find_known(points_px)
    if known.sum() < FEWEST_BEADS:
        return None
    net = _lay_net(geometry, points_px)
    limit = _CUT * _typical(tracks_px - project_points(geometry, points_px))
    left = {roughness: np.full_like(tracks_px, np.nan) for roughness in (0.0, *_ROUGHNESS)}
    folds = np.arange(len(tracks_px)) % FOLDS
    for fold in range(FOLDS):
        out = folds == fold
        fitted = fit_bundle(tracks_px[~out], start, freedom, begin=geometry, rounds=4)
        system = _System(tracks_px[~out], fitted.geometry, fitted.points_px, net.take(~out))
        blind = ~find_known(tracks_px[~out]).any(axis=0)
        for roughness, residuals in left.items():
            shift, shifts, _ = system.solve(roughness)
            moved = replace(fitted.geometry, shift_px=fitted.geometry.shift_px + shift)
            rest = locate_beads(tracks_px[out] - net.take(out).shift(shifts), moved).residuals_px
            rest[:, blind] = np.nan
            residuals[out] = rest
    trials = {roughness: Trial(freedom, residuals) for roughness, residuals in left.items()}
    best = min(_ROUGHNESS, key=lambda roughness: trials[roughness].merit(limit))
    if not trials[best].merit(limit) < (1 - LEAST_GAIN) * trials[0.0].merit(limit):
        return None
    shift, lines, steps = _System(tracks_px, geometry, points_px, net).solve(best)
    shifts, places, means = _part_field(np.einsum("vl,lyxi->vyxi", net.lines, lines), view_matrices(geometry))
    points = points_px + steps + np.einsum("by,bx,yxk->bk", net.along, net.across, places)
    moved = replace(geometry, shift_px=geometry.shift_px + shift + means)
    local = np.einsum("by,bx,vyxi->bvi", net.along, net.across, shifts, optimize=True)
    residuals = tracks_px - local - project_points(moved, points)
    return LocalAlignment(moved, points, residuals, FittedField(net.low, net.high, shifts), trials[best])


def _part_field(shifts: FloatArray, matrices: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Take off a field `(n, y, x, 2)` what no image tells from another shape of the specimen or shifts of the views.

    Returns the least field that is left, the steps `(y, x, 3)` of the specimen and the shifts `(n, 2)`.
    """
    normal = np.linalg.inv(np.einsum("vik,vil->kl", matrices, matrices))
    means = np.zeros((len(shifts), 2))
    for _ in range(20):
        places = np.einsum("kl,vil,vyxi->yxk", normal, matrices, shifts - means[:, None, None])
        seen = np.einsum("vik,yxk->vyxi", matrices, places)
        means = (shifts - seen).mean(axis=(1, 2))
    return np.asarray(shifts - seen - means[:, None, None]), np.asarray(places), np.asarray(means)


@dataclass(frozen=True, eq=False)
class _Net:
    """Nodes of a field, and how much each counts for each bead and in each view.

    `along` and `across` are `(beads, nodes)` weights of the nodes in y and x, `lines` `(n, lines)`.
    """

    low: tuple[float, float]
    high: tuple[float, float]
    along: FloatArray
    across: FloatArray
    lines: FloatArray

    def take(self, beads: npt.NDArray[np.bool_]) -> "_Net":
        return replace(self, along=self.along[beads], across=self.across[beads])

    def shift(self, shifts: FloatArray) -> FloatArray:
        """`(beads, n, 2)` shifts from those at the nodes `(lines, y, x, 2)`."""
        return np.asarray(
            np.einsum("by,bx,vl,lyxi->bvi", self.along, self.across, self.lines, shifts, optimize=True)
        )

    def row(self, bead: int) -> FloatArray:
        """`(n, lines · y · x)` weights for one bead."""
        return np.asarray(np.kron(self.lines, np.kron(self.along[bead], self.across[bead])), dtype=float)


def _lay_net(geometry: ViewGeometry, points_px: FloatArray) -> _Net:
    """Lay the nodes over the beads."""
    known = find_known(points_px)
    low, high = points_px[known, :2].min(axis=0), points_px[known, :2].max(axis=0)
    high = np.maximum(high, low + 1.0)
    fractions = torch.from_numpy((np.nan_to_num(points_px)[:, :2] - low) / (high - low))
    across, along = (spline_matrix(_NODES, fractions[:, i]).numpy() for i in range(2))
    ends = [(float(corner[0]), float(corner[1])) for corner in (low, high)]
    return _Net(ends[0], ends[1], along, across, draw_lines(geometry.tilt_deg, _LINES))


class _System:
    """Normal equations of a field and of the views' shifts, the beads' places eliminated.

    The unknowns are the shifts `(n, 2)` of the views and those `(lines, y, x, 2)` of the nodes.
    """

    def __init__(self, tracks: FloatArray, geometry: ViewGeometry, points: FloatArray, net: _Net) -> None:
        residuals = tracks - project_points(geometry, points)
        seen = find_known(residuals)
        seen &= (seen.sum(axis=1) >= FEWEST_VIEWS)[:, None]
        self.weights, self.sigma = weigh_residuals(np.nan_to_num(residuals), seen)
        self.residuals, self.net = np.where(seen[..., None], residuals, 0.0), net
        self.matrices = view_matrices(geometry)
        self.views = len(geometry)
        size = 2 * (self.views + net.lines.shape[1] * _NODES**2)
        self.normal, self.right = np.zeros((size, size)), np.zeros(size)
        for bead in np.flatnonzero(seen.any(axis=1)):
            rows, by_place, values = self._list_rows(int(bead))
            # What the bead's own place explains is taken off.
            base, _ = np.linalg.qr(by_place)
            rows = rows - base @ (base.T @ rows)
            self.normal += rows.T @ rows
            self.right += rows.T @ values

    def _list_rows(self, bead: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Weighted derivatives by the unknowns and by the bead's place, and the residuals, of one bead."""
        seen = np.flatnonzero(self.weights[bead] > 0)
        plain = np.concatenate([np.eye(self.views), self.net.row(bead)], axis=1)[seen]
        rows = np.kron(plain, np.eye(2))
        root = np.repeat(np.sqrt(self.weights[bead, seen]), 2)
        by_place = self.matrices[seen].reshape(-1, 3)
        return rows * root[:, None], by_place * root[:, None], self.residuals[bead, seen].reshape(-1) * root

    def solve(self, roughness: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Shifts of the views `(n, 2)` and of the nodes `(lines, y, x, 2)`, and steps of the beads `(beads, 3)`.

        A roughness of 0 leaves the nodes at 0.
        """
        lines = self.net.lines.shape[1]
        count = 2 * self.views if roughness == 0 else len(self.right)
        normal = self.normal[:count, :count] + 1e-6 * np.eye(count)
        if roughness:
            part = slice(2 * self.views, None)
            restraint = restrain_roughness((lines, _NODES, _NODES)) / roughness**2
            restraint += (self.sigma / _PULL_PX) ** 2 * np.eye(len(restraint))
            normal[part, part] += np.kron(restraint, np.eye(2))
        found = np.zeros(len(self.right))
        found[:count] = np.linalg.solve(normal, self.right[:count])
        shift = found[: 2 * self.views].reshape(-1, 2)
        shifts = found[2 * self.views :].reshape(lines, _NODES, _NODES, 2)
        rest = self.residuals - shift - self.net.shift(shifts)
        square = np.einsum("bv,vik,vil->bkl", self.weights, self.matrices, self.matrices) + 1e-9 * np.eye(3)
        right = np.einsum("bv,vik,bvi->bk", self.weights, self.matrices, rest)
        return shift, shifts, np.linalg.solve(square, right[..., None])[..., 0]


def restrain_roughness(shape: Sequence[int]) -> FloatArray:
    """Matrix of the sum of the squares of second differences along, and of mixed ones across, all axes of a grid."""
    total = np.zeros((int(np.prod(shape)),) * 2)
    seconds = [np.diff(np.eye(n), 2, axis=0) for n in shape]
    firsts = [np.diff(np.eye(n), 1, axis=0) for n in shape]
    for i in range(len(shape)):
        for j in range(i, len(shape)):
            parts = [np.eye(n) for n in shape]
            if i == j:
                parts[i] = seconds[i]
            else:
                parts[i], parts[j] = firsts[i], firsts[j]
            matrix: FloatArray = np.eye(1)
            for part in parts:
                matrix = np.asarray(np.kron(matrix, part), dtype=float)
            total += matrix.T @ matrix * (1 if i == j else 2)
    return total


def _typical(residuals_px: FloatArray) -> float:
    lengths = np.linalg.norm(residuals_px[find_known(residuals_px)], axis=-1)
    return float(np.median(lengths))
