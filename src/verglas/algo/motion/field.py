"""What a motion model says at places and times, and the same as RELION's polynomial."""

import numpy as np
import numpy.typing as npt
import torch

from verglas.model import MotionModel
from verglas.ops.splines import evaluate_spline_on_axes

FloatArray = npt.NDArray[np.float64]


def frame_times(count: int) -> torch.Tensor:
    """`(n,)` times of the frames, from 0 to 1."""
    return torch.arange(count, dtype=torch.float64) / max(count - 1, 1)


def shifts_on_axes(model: MotionModel, frame: int | None, y: FloatArray, x: FloatArray) -> FloatArray:
    """Displacements on the lattice of two axes.

    Parameters
    ----------
    model
        The motion.
    frame
        From 0; none is all of them.
    y, x
        `(h,)`, `(w,)` places as shares of the image's height and width.

    Returns
    -------
    ndarray
        `(h, w, 2)` yx, Å; `(n, h, w, 2)` for all frames.
    """
    times = frame_times(len(model))
    rows = slice(None) if frame is None else slice(frame, frame + 1)
    grid = torch.from_numpy(model.grid_angstrom)
    axes = (times[rows], torch.from_numpy(np.asarray(y, float)), torch.from_numpy(np.asarray(x, float)))
    local = evaluate_spline_on_axes(grid, axes).movedim(0, -1).numpy()
    total: FloatArray = local + model.trajectory_angstrom[rows, None, None, :]
    return total if frame is None else total[0]


def fit_polynomial(model: MotionModel) -> tuple[FloatArray, float]:
    """Fit RELION's model to the motion that varies over the image.

    At frame z (from 0) and at x, y (shares of the image from its middle, -0.5 to 0.5) the polynomial is the sum of
    18 terms a component: (1, x, x², y, y², xy), each times (z, z², z³).

    Returns
    -------
    coefficients, error_angstrom
        `(2, 18)` x and y component, Å, in RELION's order; and the RMS of what the polynomial cannot follow.
    """
    count = len(model)
    places = np.linspace(0.0, 1.0, 11)
    local = MotionModel(np.zeros((count, 2)), model.grid_angstrom)
    wanted = shifts_on_axes(local, None, places, places)
    y, x = np.meshgrid(places - 0.5, places - 0.5, indexing="ij")
    # In shares of the movie's length, which keeps the powers small.
    time = np.arange(count) / max(count - 1, 1)
    space = np.stack([np.ones_like(x), x, x**2, y, y**2, x * y])
    terms = np.einsum("tp,kyx->tyxkp", np.stack([time, time**2, time**3], axis=1), space)
    matrix = terms.reshape(-1, 18)
    values = wanted.reshape(-1, 2)
    solution = np.linalg.lstsq(matrix, values, rcond=None)[0]
    error = float(np.sqrt(((matrix @ solution - values) ** 2).sum(1).mean()))
    scale = np.tile(max(count - 1, 1) ** -np.arange(1.0, 4.0), 6)
    return (solution * scale[:, None]).T[::-1].copy(), error
