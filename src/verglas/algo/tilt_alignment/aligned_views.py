"""Views turned, moved and cleaned so that the tilt axis is upright through their middle.

Our own steps take raw views with their geometry and need no such stack; programs of the IMOD family do. It is what
`newstack -xform` makes, so the specimen's centre lies at index (n - 1) / 2 of n pixels, half a pixel before ours
when n is even.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from verglas.model import TiltSeries
from verglas.ops.backprojection import in_plane_matrices
from verglas.ops.fft import crop_centred, rescale_images
from verglas.ops.interpolation import affine_transform_images
from verglas.ops.statistics import replace_outliers

_MARGIN = 16


def align_view(
    image: Float[Tensor, "y x"], series: TiltSeries, view: int
) -> tuple[Float[Tensor, "y x"], Bool[Tensor, "y x"]]:
    """Apply a view's alignment to its image.

    Hot and dead pixels are replaced by noise like that around them. The image is sampled twice as finely through
    its Fourier transform, resampled by cubic B-splines, and brought back by cropping the transform, so that
    frequencies below nine tenths of Nyquist keep amplitude and phase to a percent.

    Parameters
    ----------
    image
        `(y, x)` the view.
    series
        Its geometry.
    view
        Row of the series.

    Returns
    -------
    tuple
        The aligned view, of mean 0 and 0 where the image holds nothing; and where it holds something.
    """
    clean, _ = replace_outliers(image.to(torch.float32), 6.0, seed=view)
    clean = clean - clean.mean()
    shape = (image.shape[0], image.shape[1])
    forward = _alignment_matrix(series, view)
    sampled = affine_transform_images(torch.ones_like(clean), forward, fill=0.0) > 0.999
    aligned = _resample(clean, forward, shape)
    aligned = aligned - aligned[sampled].mean() if bool(sampled.any()) else aligned
    return aligned * sampled, sampled


def _alignment_matrix(series: TiltSeries, view: int) -> Tensor:
    """`(3, 3)` of the raw to the aligned image, pixels from the centres `n // 2`."""
    in_plane = in_plane_matrices(
        torch.tensor(series.z_rot_deg[view : view + 1]), torch.tensor(series.magnification[view : view + 1])
    )[0].double()
    shift = torch.tensor([series.x_shift_angstrom[view], series.y_shift_angstrom[view]], dtype=torch.float64)
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] = torch.linalg.inv(in_plane)
    matrix[:2, 2] = -matrix[:2, :2] @ shift / series.pixel_size_angstrom + _centre_offset(series)
    return matrix


def _centre_offset(series: TiltSeries) -> Tensor:
    """IMOD's centre less ours, xy pixels."""
    return torch.tensor([-0.5 * (n % 2 == 0) for n in reversed(series.image_shape)], dtype=torch.float64)


def _resample(image: Tensor, forward: Tensor, shape: tuple[int, int]) -> Tensor:
    margin = min(_MARGIN, min(shape) - 1)
    height, width = (n + 2 * margin for n in shape)
    # Mirrored, so that the transform meets no step at the edges.
    wide = pad(image[None, None], (margin,) * 4, mode="reflect")[0, 0]
    fine = rescale_images(wide, (2 * height, 2 * width))
    doubled = forward.clone()
    doubled[:2, 2] *= 2
    moved = affine_transform_images(fine, doubled, order="cubic", fill=0.0)
    return crop_centred(rescale_images(moved, (height, width)), shape)


def align_record(series: TiltSeries) -> TiltSeries:
    """Return the record of the aligned images: no axis angle, no stretch, and IMOD's centre for a shift.

    The aligned images still show the local field, which is turned with them.
    """
    x, y = (_centre_offset(series) * series.pixel_size_angstrom).tolist()
    turned = series.defocus_angle_deg - series.z_rot_deg
    local = series.local
    if local is not None:
        in_plane = in_plane_matrices(torch.tensor(series.z_rot_deg), torch.tensor(series.magnification))
        back = torch.linalg.inv(in_plane.double()).numpy()
        local = replace(local, shifts_angstrom=np.einsum("nij,nyxj->nyxi", back, local.shifts_angstrom))
    return replace(
        series,
        local=local,
        z_rot_deg=np.zeros(len(series)),
        x_shift_angstrom=np.full(len(series), x),
        y_shift_angstrom=np.full(len(series), y),
        magnification=np.eye(2),
        defocus_angle_deg=(turned + 90) % 180 - 90,
    )
