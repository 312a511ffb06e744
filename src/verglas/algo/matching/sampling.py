"""What a tilt series leaves of a molecule: the weights of its Fourier space in a tomogram."""

import numpy as np
import torch
from torch import Tensor

from verglas.errors import UserError
from verglas.model import TiltSeries
from verglas.ops.backprojection import angular_steps
from verglas.ops.ctf import ctf_1d
from verglas.ops.dose import critical_exposure
from verglas.ops.fft import frequency_grid
from verglas.ops.geometry import projection_matrices
from verglas.shapes import Values

Ctf = str
"""How the tomogram was corrected: "none", "flip" or "multiply"."""


def sampling_weights(
    series: TiltSeries,
    size: int,
    voxel_size_angstrom: float,
    *,
    dose_weighted: bool = True,
    ctf: Ctf = "none",
) -> Values:
    """Weights of the Fourier coefficients of a molecule in a box cut from a back-projected tomogram.

    Each view measures a plane through the origin, as thick as one over the box. The ramp filter makes the
    planes add up to one wherever they are dense enough; between steep views and in the missing wedge less or
    nothing is there. Each view counts with what its exposure and CTF left of the molecule, and with what the
    reconstruction did about both.

    Parameters
    ----------
    series
        Geometry, exposures and defocus; only selected views count.
    size
        Side of the box in voxels.
    voxel_size_angstrom
        Side of a voxel, Å.
    dose_weighted
        Whether the views were weighted by their exposure before they were summed.
    ctf
        "none": the views came as they were; "flip", "multiply": that was done to them. Views whose defocus is
        not known count as corrected.

    Returns
    -------
    Tensor
        `(size, size, size // 2 + 1)` float32.

    Raises
    ------
    UserError
        When no view is selected or `ctf` has another name.
    """
    if ctf not in {"none", "flip", "multiply"}:
        raise UserError(f"`ctf` must be none, flip or multiply; got {ctf!r}")
    if not series.selected.any():
        raise UserError(f"no view of {series.name!r} is selected; expected at least one")
    views = series.take(series.selected)
    tilts = torch.tensor(np.asarray(views.y_tilt_deg))
    zero = torch.zeros_like(tilts)
    matrices = projection_matrices(
        x_tilt_deg=torch.tensor(views.x_tilt_deg),
        y_tilt_deg=tilts,
        z_rot_deg=zero,
        x_shift_angstrom=zero,
        y_shift_angstrom=zero,
    )[:, :3, :3].float()
    steps = angular_steps(tilts).tolist()
    frequency = frequency_grid((size, size, size), voxel_size_angstrom).flip(-1)
    side = size * voxel_size_angstrom
    total = torch.zeros(frequency.shape[:-1])
    density = torch.zeros_like(total)
    for view, matrix in enumerate(matrices):
        x, y, z = (frequency @ matrix.T).unbind(-1)
        # Planes of the n views all pass through the tilt axis, where each is one of n.
        spacing = (x.abs() * side * steps[view]).clamp_min(1 / len(views))
        plane = spacing * (1 - z.abs() * side).clamp_min(0)
        density += plane
        total += plane * _view_weight(views, view, torch.hypot(x, y), dose_weighted, ctf)
    weights: Tensor = total / density.clamp_min(1.0)
    return weights


def _view_weight(
    series: TiltSeries, view: int, radius: Tensor, dose_weighted: bool, ctf: Ctf
) -> Tensor | float:
    """Tell what one view keeps of each frequency's amplitude."""
    weight: Tensor | float = 1.0
    exposure = float(series.pre_exposure_e_per_a2[view])
    if exposure > 0:
        rate = -0.5 / critical_exposure(radius.clamp_min(1e-6), series.optics.voltage_kv)
        weight = torch.exp(rate * exposure * (2 if dose_weighted else 1))
    defocus = float(series.mean_defocus_angstrom[view])
    if np.isfinite(defocus):
        optics = series.optics
        transfer = ctf_1d(
            radius.reshape(-1),
            torch.tensor(defocus),
            voltage_kv=optics.voltage_kv,
            cs_mm=optics.cs_mm,
            amplitude_contrast=optics.amplitude_contrast,
            phase_shift_deg=float(series.phase_shift_deg[view]),
        ).reshape(radius.shape)
        weight = weight * {"none": transfer, "flip": transfer.abs(), "multiply": transfer.square()}[ctf]
    return weight
