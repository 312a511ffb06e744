"""Rough shifts of the views from correlations of neighbours, stretched by the ratio of their cosines."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.fft import irfft2, next_fast_len, rfft2
from scipy.ndimage import affine_transform, gaussian_filter

from verglas.errors import UserError
from verglas.ops.binning import bin_images

FloatArray = npt.NDArray[np.float64]

LARGEST = 320
"""Images are averaged in blocks until their longer side is at most this many pixels."""


def order_outward(tilt_deg: npt.ArrayLike) -> list[tuple[int, int]]:
    """Pairs (view, its neighbour on the way to the lowest tilt), from the lowest tilt outward.

    The lowest tilt itself is the first and its own neighbour.
    """
    tilt = np.asarray(tilt_deg, dtype=float)
    sorted_views = np.argsort(tilt, kind="stable")
    middle = int(np.argmin(np.abs(tilt[sorted_views])))
    pairs = [(int(sorted_views[middle]),) * 2]
    for step in range(1, len(tilt)):
        for place, inner in ((middle + step, middle + step - 1), (middle - step, middle - step + 1)):
            if 0 <= place < len(tilt):
                pairs.append((int(sorted_views[place]), int(sorted_views[inner])))
    return pairs


def find_coarse_shifts(
    images: Sequence[npt.NDArray[np.floating]], tilt_deg: npt.ArrayLike, axis_deg: float | None
) -> FloatArray:
    """Shifts of the views by cross-correlation of neighbours, from the lowest tilt outward.

    The outer view is stretched across the tilt axis to the tilt of the inner one (Guckenberger 1982). Good to
    a few pixels: the correlation follows what lies at no height.

    Parameters
    ----------
    images
        n views `(y, x)`.
    tilt_deg
        `(n,)`.
    axis_deg
        Angle of the tilt axis in the image; none when unknown, then nothing is stretched.

    Returns
    -------
    ndarray
        `(n, 2)` xy, pixels, of what lies in the centre of the view of lowest tilt.

    Raises
    ------
    UserError
        When there are not as many images as tilts.
    """
    tilt = np.deg2rad(np.asarray(tilt_deg, dtype=float))
    if len(images) != len(tilt):
        raise UserError(f"`tilt_deg` must have one angle for each of {len(images)} images; got {len(tilt)}")
    factor = -(-max(images[0].shape) // LARGEST)
    small = [_flatten(bin_images(torch.as_tensor(image), factor).numpy()) for image in images]
    shifts = np.zeros((len(small), 2))
    for view, inner in order_outward(tilt_deg)[1:]:
        stretch = np.eye(2)
        if axis_deg is not None:
            ratio = np.cos(tilt[view]) / max(np.cos(tilt[inner]), 1e-3)
            across = np.array([np.cos(np.deg2rad(axis_deg)), np.sin(np.deg2rad(axis_deg))])
            stretch += (ratio - 1) * np.outer(across, across)
        moved = _measure_shift(_resample(small[view], stretch), small[inner])
        shifts[view] = stretch @ (shifts[inner] + factor * moved)
    return shifts


def _flatten(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Band-pass an image and let it fade out towards its edges."""
    band = gaussian_filter(image, 1.0) - gaussian_filter(image, 8.0)
    limit = 6 * 1.4826 * float(np.median(np.abs(band))) + 1e-12
    band = np.clip(band, -limit, limit)
    windows = [np.clip(np.minimum(np.arange(n), np.arange(n)[::-1]) / (0.08 * n), 0, 1) for n in image.shape]
    fade = [0.5 - 0.5 * np.cos(np.pi * window) for window in windows]
    return np.asarray(band * np.outer(*fade), dtype=np.float32)


def _resample(image: npt.NDArray[np.float32], stretch: FloatArray) -> npt.NDArray[np.float32]:
    """Read the image at `stretch` times each place from its centre."""
    if np.allclose(stretch, np.eye(2)):
        return image
    matrix = stretch[::-1, ::-1]  # xy to yx
    centre = np.array([n // 2 for n in image.shape], dtype=float)
    return np.asarray(affine_transform(image, matrix, offset=centre - matrix @ centre, order=1))


def _measure_shift(image: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> FloatArray:
    """How far the image is moved against the reference, xy, to a fraction of a pixel."""
    shape = [next_fast_len(round(1.6 * n), real=True) for n in image.shape]
    product = rfft2(image, shape) * rfft2(reference, shape).conj()
    scores = gaussian_filter(irfft2(product, shape), 1.0, mode="wrap")
    place = np.array(np.unravel_index(int(scores.argmax()), scores.shape))
    moved = np.empty(2)
    for axis in range(2):
        before, at, after = (
            scores[tuple(np.where(np.arange(2) == axis, place + d, place) % scores.shape)] for d in (-1, 0, 1)
        )
        bend = before - 2 * at + after
        moved[axis] = place[axis] + (0.5 * (before - after) / bend if bend < 0 else 0.0)
        moved[axis] -= shape[axis] if moved[axis] > shape[axis] / 2 else 0
    return moved[::-1]
