"""Volumes, projections and transforms of scatterers by direct sums.

Convention
----------
Arrays are zyx, the centre of an axis is pixel `n // 2`. A `(3, 3)` or `(4, 4)` matrix acts on columns of xyz
in Å and takes the body's frame to the image frame; the projection is along the image frame's z.
"""

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from verglas.algo.simulation.kernels import add_projections, add_volume, sum_transform
from verglas.algo.simulation.scatterers import FloatArray, Scatterers
from verglas.errors import UserError
from verglas.runtime import map_threads

Sampling = Literal["point", "average"]
"""How a pixel sees the potential: at its centre, or averaged over its area or volume."""


def render_volume(
    scatterers: Scatterers,
    shape: tuple[int, int, int],
    voxel_size_angstrom: float,
    *,
    sampling: Sampling = "point",
) -> npt.NDArray[np.float32]:
    """Potential of scatterers on a grid, in V: the truth volume.

    Parameters
    ----------
    scatterers
        In the frame whose origin is the volume's centre.
    shape
        `(z, y, x)` voxels.
    voxel_size_angstrom
        Side of a voxel, Å.
    sampling
        "point" takes the potential at the voxel's centre (alias-free to 1e-3 where σ is above 0.6 voxel),
        "average" its mean over the voxel.
    """
    _check_grid(shape, 3, voxel_size_angstrom, sampling)
    volume = np.zeros(shape, dtype=np.float32)
    if len(scatterers) == 0:
        return volume
    centre = (float(shape[0] // 2), float(shape[1] // 2), float(shape[2] // 2))

    def render_slab(first: int) -> None:
        slab = volume[first : first + step]
        add_volume(
            slab,
            first,
            scatterers.positions_angstrom,
            scatterers.weights_v_a3,
            scatterers.sigmas_angstrom,
            float(voxel_size_angstrom),
            centre,
            sampling == "average",
        )

    step = max(1, math.ceil(shape[0] / 8))
    map_threads(render_slab, range(0, shape[0], step))
    return volume


def project_scatterers(
    scatterers: Scatterers,
    matrix: FloatArray,
    shape: tuple[int, int],
    pixel_size_angstrom: float,
    *,
    sampling: Sampling = "average",
) -> FloatArray:
    """Projected potential of scatterers on a grid, in V·Å.

    Parameters
    ----------
    scatterers
        In their own frame.
    matrix
        `(3, 3)` or `(4, 4)`, body to image; row 2 is the depth along the beam. An in-plane magnification M
        may be part of it: places follow M exactly, and each Gaussian is widened by sqrt(|det M|).
    shape
        `(y, x)` pixels.
    pixel_size_angstrom
        Side of a pixel, Å.
    sampling
        "average" over the pixel's area, as a detector does, or "point" at its centre.
    """
    _check_grid(shape, 2, pixel_size_angstrom, sampling)
    full = as_affine(matrix)
    layers = np.zeros((1, *shape))
    if len(scatterers):
        add_projections(
            layers,
            np.zeros(1, dtype=np.bool_),
            np.ascontiguousarray(full[None, :3, :3]),
            full[None, :3, 3].copy(),
            scatterers.positions_angstrom,
            scatterers.weights_v_a3,
            scatterers.sigmas_angstrom,
            stretch_of(full),
            float(pixel_size_angstrom),
            (float(shape[0] // 2), float(shape[1] // 2)),
            -1e12,
            2e12,
            False,
            sampling == "average",
        )
    return np.asarray(layers[0])


def transform_scatterers(scatterers: Scatterers, frequencies: npt.ArrayLike) -> npt.NDArray[np.complex128]:
    """Fourier transform ∫ V(r) exp(-2πi k·r) dr at any frequencies, in V·Å³, as a direct sum.

    Parameters
    ----------
    scatterers
        In the frame of the frequencies.
    frequencies
        `(..., 3)` xyz in 1/Å.

    Returns
    -------
    ndarray
        `(...)` complex.
    """
    points = np.asarray(frequencies, dtype=np.float64)
    flat = np.ascontiguousarray(points.reshape(-1, 3))
    result = np.zeros(len(flat), dtype=np.complex128)

    def sum_chunk(first: int) -> None:
        part = slice(first, first + 1024)
        real, imaginary = np.zeros(len(flat[part])), np.zeros(len(flat[part]))
        sum_transform(
            flat[part],
            scatterers.positions_angstrom,
            scatterers.weights_v_a3,
            scatterers.sigmas_angstrom,
            real,
            imaginary,
        )
        result[part] = real + 1j * imaginary

    map_threads(sum_chunk, range(0, len(flat), 1024))
    return result.reshape(points.shape[:-1])


def project_scatterers_rfft(
    scatterers: Scatterers, matrix: FloatArray, shape: tuple[int, int], pixel_size_angstrom: float
) -> npt.NDArray[np.complex128]:
    """Half transform `(y, x // 2 + 1)` of the band-limited projection, from the central section theorem.

    Nothing is drawn and nothing is interpolated: each coefficient is a direct sum over the Gaussians.
    `irfft2` gives V·Å at the pixels' centres. For small cases: the work is scatterers times coefficients.

    Parameters
    ----------
    scatterers, matrix, shape, pixel_size_angstrom
        As in `project_scatterers`; the matrix must not change lengths.
    """
    _check_grid(shape, 2, pixel_size_angstrom, "point")
    full = as_affine(matrix)
    height, width = shape
    ky = np.fft.fftfreq(height, pixel_size_angstrom)[:, None]
    kx = np.fft.rfftfreq(width, pixel_size_angstrom)[None, :]
    plane = np.stack(np.broadcast_arrays(kx, ky, 0.0), axis=-1)
    # A frequency of the image belongs to the body's frequency turned back by the transposed matrix.
    values = transform_scatterers(scatterers, plane @ full[:3, :3])
    origin = np.array([width // 2, height // 2]) * pixel_size_angstrom + full[:2, 3]
    phase = -2j * np.pi * (kx * origin[0] + ky * origin[1])
    return np.asarray(values * np.exp(phase) / pixel_size_angstrom**2)


def as_affine(matrix: FloatArray) -> FloatArray:
    """Return a `(3, 3)` or `(4, 4)` matrix as `(4, 4)`.

    Raises
    ------
    UserError
        When it is neither.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape not in {(3, 3), (4, 4)}:
        raise UserError(f"`matrix` must be (3, 3) or (4, 4); got {matrix.shape}")
    full = np.eye(4)
    full[: len(matrix), : len(matrix)] = matrix
    return full


def stretch_of(matrix: FloatArray) -> float:
    """Factor by which a body-to-image matrix magnifies lengths in the image: sqrt(|det M|)."""
    return float(np.sqrt(np.linalg.norm(np.cross(matrix[0, :3], matrix[1, :3]))))


def _check_grid(shape: tuple[int, ...], dimensions: int, pixel: float, sampling: str) -> None:
    if len(shape) != dimensions or min(shape) < 1:
        raise UserError(f"`shape` must be {dimensions} positive sizes; got {shape}")
    if not (math.isfinite(pixel) and pixel > 0):
        raise UserError(f"the pixel or voxel size must be positive; got {pixel}")
    if sampling not in {"point", "average"}:
        raise UserError(f"`sampling` must be point or average; got {sampling!r}")
