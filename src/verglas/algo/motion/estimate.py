"""The motion of a movie: of the whole image first, then varying over it, all of it refined together.

The whole image's motion has a value a frame (or fewer nodes in time, when asked), what varies over the image is a
natural cubic spline on a grid x * y * t. Both are refined by Newton's method on the likelihood of all patches
(`algo.motion.likelihood`), under a prior that keeps the motion small and smooth where the frames say little: what a
place moves from one node in time to the next is normally distributed, and so are its differences over the image and
over time.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex
from torch import Tensor

from verglas.algo.motion.bands import HIGHEST
from verglas.algo.motion.field import frame_times
from verglas.algo.motion.likelihood import (
    Grid,
    align,
    information_limit,
    limit_grid,
    make_grid,
    measure_powers,
    measure_weights,
    score_shifts,
    spread_weights,
)
from verglas.algo.motion.patches import Layout, cut_patch, lay_patches
from verglas.algo.motion.pattern import weaken_pattern
from verglas.algo.motion.whole import correlate_frames
from verglas.model import MotionModel
from verglas.ops.splines import spline_matrix
from verglas.runtime import map_threads, release_memory

DRIFT_ANGSTROM = 1.5
"""Standard deviation of what a place moves on its own in a quarter of the movie."""

SHEAR_ANGSTROM = 0.7
"""And of how much more than a place a third of the image away."""

BEND_ANGSTROM = 0.7
"""And of how much more than in the quarter before."""

ACCELERATIONS_ANGSTROM = (0.75, 0.37, 0.18, 0.09, 0.05)
"""Standard deviations of the change of the whole image's step from frame to frame; the movie tells which it has."""

_CONVERGED = 0.01
_DECIMALS = 3


@dataclass(frozen=True)
class Settings:
    """How finely the motion is modelled.

    Parameters
    ----------
    grid
        Nodes along x, y and t. With one along x and y, t is the number of nodes of the whole image's motion;
        otherwise that has one a frame.
    pixel_size_angstrom
        Of the frames.
    """

    grid: tuple[int, int, int]
    pixel_size_angstrom: float


@dataclass(frozen=True, eq=False)
class Estimated:
    """A motion, and how well it is known.

    Parameters
    ----------
    model
        The motion.
    frequencies_per_pixel, shares
        `(r,)` rings and the share of a frame's power there that all frames have in common.
    error_pixels
        Standard error of the whole image's displacement in one frame, after the likelihood.
    information_limit_per_pixel
        Frequency below which nearly all that is known of the motion lies.
    """

    model: MotionModel
    frequencies_per_pixel: np.ndarray
    shares: np.ndarray
    error_pixels: float
    information_limit_per_pixel: float


@dataclass
class _State:
    """Unknowns in pixels: the trajectory's nodes and the grid's."""

    trajectory: Tensor
    grid: Tensor
    time_basis: Tensor
    local_time: Tensor
    acceleration_angstrom: float = ACCELERATIONS_ANGSTROM[0]


def estimate_motion(
    bands: Complex[Tensor, "n h w"], band_shape: tuple[int, int], shape: tuple[int, int], settings: Settings
) -> Estimated:
    """Estimate the motion from the low frequencies of all frames.

    Parameters
    ----------
    bands
        `(n, h, w)` half transforms from `transform_band`. They are used up: a pattern of the camera is taken off in
        place, and what is not needed any more is given back.
    band_shape
        Size of the images they are transforms of.
    shape
        `(y, x)` pixels of the frames.
    settings
        The model.
    """
    count = len(bands)
    scale = (shape[0] / band_shape[0], shape[1] / band_shape[1])
    highest = min(HIGHEST, 0.5 / max(scale))
    whole = make_grid(band_shape, scale, 0.99 * highest)
    if count == 1:
        model = MotionModel(np.zeros((1, 2)), np.zeros((2, 1, 1, 1)))
        return Estimated(model, np.zeros(1), np.zeros(1), 0.0, highest)
    weaken_pattern(bands, whole)
    shifts = correlate_frames(bands, whole, shape)
    state = _start(count, settings, shifts)
    # The whole image as one patch, before it is known how it deforms.
    everything = [bands]
    centre = torch.full((1, 2), 0.5, dtype=torch.float64)
    limit = 0.5 * highest
    for rounds in (4, 2):
        weights, shares = _measure(everything, whole, [state.time_basis @ state.trajectory])
        limit = min(information_limit(weights, shares, whole), 0.99 * highest)
        _refine(state, settings, everything, whole, weights, centre, limit, local=False, rounds=rounds)
    information = _fisher(weights, shares, whole)
    if settings.grid[:2] != (1, 1):
        aligned = _shift_frames(bands, whole, state.time_basis @ state.trajectory, band_shape)
        _give_back(bands)
        weights, shares, limit, whole = _refine_locally(state, settings, aligned, scale, limit)
    model = _make_model(state, settings.pixel_size_angstrom)
    rings = np.arange(len(shares)) * whole.step
    error = float(1 / np.sqrt(max(count * information, 1e-12)))
    return Estimated(model, rings, shares.numpy(), error, limit)


def _start(count: int, settings: Settings, shifts: Tensor) -> _State:
    x, y, t = settings.grid
    local = (x, y) != (1, 1)
    times = frame_times(count)
    nodes = count if local or t >= count else t
    basis = torch.eye(count, dtype=torch.float64) if nodes == count else spline_matrix(nodes, times)
    trajectory = torch.linalg.lstsq(basis, shifts).solution
    t = min(t, count) if local else 1
    grid = torch.zeros(t, y, x, 2, dtype=torch.float64)
    return _State(trajectory, grid, basis, spline_matrix(t, times))


def _measure(patches: list[Tensor], grid: Grid, shifts: list[Tensor]) -> tuple[Tensor, Tensor]:
    pairs = list(zip(patches, shifts, strict=True))
    powers = torch.stack(map_threads(lambda pair: measure_powers(pair[0], grid, pair[1]), pairs))
    return measure_weights(powers.sum(0), grid, len(patches[0]), len(patches))


def _fisher(weights: Tensor, shares: Tensor, grid: Grid) -> float:
    """Information on the displacement along one axis that one frame and one other share, per frame."""
    number = torch.bincount(grid.rings[grid.usable].cpu(), minlength=len(weights)).double()
    k = torch.arange(len(weights), dtype=torch.float64) * grid.step
    signal = shares.double() / (1 - shares.double()).clamp(min=1e-3)
    # w S = s² / (1 + n s) with s = S / N; the number of frames is in the weights already.
    noise_free = (weights.double() > 0) * signal**2 / (1 + signal)
    return float(4 * np.pi**2 * (noise_free * number * k**2).sum())


def _shift_frames(bands: Tensor, grid: Grid, shifts: Tensor, shape: tuple[int, int]) -> Tensor:
    """Low-band frames with the whole image's motion undone."""
    frames = torch.empty(len(bands), *shape, dtype=torch.float32)

    def shift(i: int) -> None:
        frames[i] = torch.fft.irfft2(align(bands[i : i + 1], grid, shifts[i : i + 1])[0], s=shape)

    map_threads(shift, range(len(bands)))
    return frames


def _refine_locally(
    state: _State, settings: Settings, frames: Tensor, scale: tuple[float, float], limit: float
) -> tuple[Tensor, Tensor, float, Grid]:
    """Refine all of the motion on patches, coarse to fine."""
    layout = lay_patches((frames.shape[1], frames.shape[2]))
    highest = min(HIGHEST, 0.5 / max(scale))
    # What blurred may tell a little more than it did as a whole.
    grid, rows, columns = limit_grid(
        make_grid((layout.size, layout.size), scale, 0.99 * highest), min(1.3 * limit, 0.99 * highest)
    )
    # The frames are aligned as a whole: patches measure what is left.
    undone = state.time_basis @ state.trajectory
    patches = map_threads(
        lambda i: cut_patch(frames, layout, i)[:, rows, :columns], range(len(layout.corners))
    )
    _give_back(frames)
    weights, shares = _measure(patches, grid, _left_over(state, layout, undone))
    for part, rounds in ((0.4, 3), (1.0, 2)):
        limit = information_limit(weights, shares, grid)
        _refine(
            state,
            settings,
            patches,
            grid,
            weights,
            layout.centres,
            max(part * limit, 4 * grid.step),
            local=True,
            undone=undone,
            rounds=rounds,
        )
        weights, shares = _measure(patches, grid, _left_over(state, layout, undone))
    return weights, shares, limit, grid


def _give_back(values: Tensor) -> None:
    """Give back the memory of values that are not needed any more, whoever has a name for them."""
    values.set_(torch.empty(0, dtype=values.dtype).untyped_storage())
    release_memory()


def _left_over(state: _State, layout: Layout, undone: Tensor) -> list[Tensor]:
    spaces = _space_basis(state, layout.centres)
    return [_shifts_at(state, space) - undone for space in spaces]


def _space_basis(state: _State, centres: Tensor) -> Tensor:
    """`(p, y x)` weights of the grid's nodes at places."""
    _, y, x, _ = state.grid.shape
    along_y, along_x = spline_matrix(y, centres[:, 0]), spline_matrix(x, centres[:, 1])
    return (along_y[:, :, None] * along_x[:, None, :]).flatten(1)


def _shifts_at(state: _State, space: Tensor) -> Tensor:
    """`(n, 2)` displacements where the grid has these weights."""
    nodes = torch.einsum("s,tsc->tc", space, state.grid.flatten(1, 2))
    return state.time_basis @ state.trajectory + state.local_time @ nodes


def _refine(
    state: _State,
    settings: Settings,
    patches: list[Tensor],
    grid: Grid,
    weights: Tensor,
    centres: Tensor,
    limit: float,
    *,
    local: bool,
    rounds: int,
    undone: Tensor | None = None,
) -> None:
    """Newton steps on the unknowns until they rest."""
    low, rows, _ = limit_grid(grid, limit)
    spread = spread_weights(weights, low)
    spaces = _space_basis(state, centres)
    count = len(state.time_basis)
    rest = torch.zeros(count, 2, dtype=torch.float64) if undone is None else undone
    prior = _make_prior(state, settings, local)
    for _ in range(rounds):
        gradient, hessian = torch.zeros(prior.shape[0], 2, dtype=torch.float64), _zeros(2 * prior.shape[0])
        shifts = [_shifts_at(state, space) - rest for space in spaces]
        scores = map_threads(
            lambda pair: score_shifts(pair[0], low, spread, pair[1], rows),
            list(zip(patches, shifts, strict=True)),
        )
        for space, (slope, information) in zip(spaces, scores, strict=True):
            basis = state.time_basis
            if local:
                basis = torch.cat([basis, torch.kron(state.local_time, space[None])], 1)
            gradient += basis.T @ slope
            even = basis - basis.mean(0)
            hessian += torch.kron(count * even.T @ even, _make_positive(information))
        unknowns = _join(state, local)
        if not local:
            state.acceleration_angstrom = _choose_acceleration(state, settings, gradient, hessian)
            prior = _make_prior(state, settings, local)
        full = hessian + torch.kron(prior, torch.eye(2, dtype=torch.float64))
        step = torch.linalg.solve(full, (gradient - prior @ unknowns).flatten()).reshape(-1, 2)
        _add_step(state, step, local)
        moved = float((state.time_basis @ step[: state.trajectory.shape[0]]).abs().max())
        if max(moved, float(step.abs().max())) < _CONVERGED:
            break


def _zeros(size: int) -> Tensor:
    return torch.zeros(size, size, dtype=torch.float64)


def _make_positive(information: Tensor) -> Tensor:
    """Take as no information what chance made negative."""
    values, vectors = torch.linalg.eigh(0.5 * (information + information.T))
    floor = 0.05 * values.max().clamp(min=0)
    positive: Tensor = vectors @ torch.diag(torch.maximum(values, floor)) @ vectors.T
    return positive


def _join(state: _State, local: bool) -> Tensor:
    parts = [state.trajectory]
    if local:
        parts.append(state.grid.flatten(0, 2))
    return torch.cat(parts)


def _add_step(state: _State, step: Tensor, local: bool) -> None:
    nodes = len(state.trajectory)
    # The frames do not tell what displaces all of them: left free it would grow from rounding errors.
    trajectory = state.trajectory + step[:nodes]
    state.trajectory = trajectory - trajectory.mean(0)
    if local:
        grid = state.grid + step[nodes:].reshape(state.grid.shape)
        state.grid = grid - grid.mean(0)


def _choose_acceleration(state: _State, settings: Settings, gradient: Tensor, hessian: Tensor) -> float:
    """Choose the deviation under which the displacements are likeliest (evidence of a linear Gaussian model)."""
    nodes = len(state.trajectory)
    if nodes <= 2:
        return state.acceleration_angstrom
    pseudo = torch.linalg.pinv(hessian, hermitian=True)
    measured = state.trajectory.flatten() + pseudo @ gradient.flatten()

    def evidence(deviation: float) -> float:
        single = _bend_prior(nodes, settings.pixel_size_angstrom / deviation)
        prior = torch.kron(single, torch.eye(2, dtype=torch.float64))
        full = hessian + prior
        pull = hessian @ measured
        rest = measured @ pull - pull @ torch.linalg.solve(full, pull)
        return float(0.5 * (torch.logdet(prior) - torch.logdet(full) - rest))

    return max(ACCELERATIONS_ANGSTROM, key=evidence)


def _bend_prior(nodes: int, scale: float) -> Tensor:
    # The mean of the displacements is free: the frames do not tell it.
    prior = 1e-6 * torch.eye(nodes, dtype=torch.float64)
    if nodes > 2:
        bend = torch.diff(torch.eye(nodes, dtype=torch.float64), n=2, dim=0)
        prior = prior + bend.T @ bend * scale**2
    return prior


def _make_prior(state: _State, settings: Settings, local: bool) -> Tensor:
    """Inverse covariance of the unknowns, for one component, 1/pixels²."""
    pixel = settings.pixel_size_angstrom
    nodes = len(state.trajectory)
    prior = _bend_prior(nodes, pixel / state.acceleration_angstrom)
    if not local:
        return prior
    t, y, x, _ = state.grid.shape
    eyes = [torch.eye(size, dtype=torch.float64) for size in (t, y, x)]
    # As integrals over time and image, so that a finer grid says the same.
    quarter = max(t - 1, 1) / 4
    area = 9 / (max(y - 1, 1) * max(x - 1, 1))
    field = torch.kron(eyes[1], eyes[2]) * area * (pixel / DRIFT_ANGSTROM) ** 2
    for factors in ((_steps(eyes[1]), eyes[2]), (eyes[1], _steps(eyes[2]))):
        field = field + torch.kron(*factors) * (pixel / SHEAR_ANGSTROM) ** 2
    smooth = torch.kron(_steps(eyes[0]) * quarter, field) + 1e-6 * torch.eye(t * y * x, dtype=torch.float64)
    if t > 2:
        even = torch.kron(eyes[1], eyes[2]) * area * (pixel / BEND_ANGSTROM) ** 2
        smooth = smooth + torch.kron(_steps(eyes[0], 2) * quarter**3, even)
    joined: Tensor = torch.block_diag(prior, smooth)  # type: ignore[no-untyped-call]
    return joined


def _steps(eye: Tensor, order: int = 1) -> Tensor:
    """Sum of squared differences along an axis, as a matrix."""
    step = torch.diff(eye, n=order, dim=0)
    return step.T @ step


def _make_model(state: _State, pixel_size_angstrom: float) -> MotionModel:
    """Count displacements from the first frame, and give what all places share to the trajectory."""
    grid = state.grid - state.grid[:1]
    trajectory = state.time_basis @ state.trajectory
    centre = _space_basis(state, torch.full((1, 2), 0.5, dtype=torch.float64))[0]
    shared = torch.einsum("s,tsc->tc", centre, grid.flatten(1, 2))
    grid = grid - shared[:, None, None, :]
    trajectory = trajectory + state.local_time @ shared
    trajectory = trajectory - trajectory[:1]
    # The last digits differ from run to run, with the number of threads and where things lie in memory.
    trajectory, grid = (
        (pixel_size_angstrom * one).round(decimals=_DECIMALS) for one in (trajectory, grid.movedim(-1, 0))
    )
    return MotionModel(np.asarray(trajectory), np.asarray(grid))
