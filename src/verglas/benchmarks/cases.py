"""Data that several benchmarks share."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from verglas.io.mrc import create_mrc
from verglas.io.relion_tilt_series import write_tilt_series
from verglas.model import ImageReference, Optics, TiltSeries

PIXEL_ANGSTROM = 10.0


def size_of_case(quick: bool) -> tuple[tuple[int, int], int]:
    """`(y, x)` of the views and voxels along the beam: a binned in-cell series, or a sixteenth of it."""
    return ((252, 260), 100) if quick else ((630, 652), 260)


def make_noise(shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """Noise `(n, y, x)` with a spectrum that falls towards Nyquist, as a camera's does."""
    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return np.asarray(gaussian_filter(noise, (0, 0.6, 0.6)))


def write_noise_series(folder: Path, shape: tuple[int, int], *, views: int = 41) -> tuple[Path, Path]:
    """Write a stack of smooth noise and the `tilt_series.star` of a plausible alignment.

    Returns
    -------
    tuple
        The STAR file and the stack.
    """
    tilts = np.linspace(-60.0, 60.0, views)
    noise = make_noise((views, *shape))
    stack = folder / "noise.mrc"
    with create_mrc(stack, (views, *shape), voxel_size_angstrom=PIXEL_ANGSTROM, is_stack=True) as writer:
        writer.write(40 + noise)
    series = TiltSeries(
        name="noise",
        optics=Optics(PIXEL_ANGSTROM),
        image_shape=shape,
        images=tuple(ImageReference(stack, i) for i in range(views)),
        nominal_tilt_deg=tilts,
        z_rot_deg=np.full(views, -4.3),
        x_shift_angstrom=80 * np.sin(tilts),
        y_shift_angstrom=20 * np.cos(tilts),
        pre_exposure_e_per_a2=np.argsort(np.argsort(np.abs(tilts), kind="stable")).astype(float) * 3,
    )
    return write_tilt_series(folder, [series]), stack


def filter_rows(views: npt.NDArray[np.float32], tilt_deg: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Weight aligned views `(n, y, x)` with Radon's ramp along x in plain numpy, zero-padded to twice the size."""
    size = views.shape[2]
    steps = np.deg2rad(np.gradient(tilt_deg))
    ramp = np.abs(np.fft.rfftfreq(2 * size)) * steps[:, None, None]
    filtered = np.fft.irfft(np.fft.rfft(views, 2 * size, axis=2) * ramp, axis=2)
    return np.ascontiguousarray(filtered[:, :, :size], dtype=np.float32)
