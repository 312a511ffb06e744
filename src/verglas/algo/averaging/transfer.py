"""What the microscope lets through of each particle in each view, and the noise beside it."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from verglas.algo.averaging.views import ParticleSlices, SeriesViews
from verglas.ops.ctf import ctf_2d, defocus_form
from verglas.ops.dose import exposure_filter, view_weights
from verglas.ops.statistics import fourier_shells
from verglas.shapes import Vectors
from verglas.units import ANGSTROM_PER_MILLIMETRE

Transfer = Float[Tensor, "particles views y kx"]
"""`(p, v, n, n // 2 + 1)` amplitudes."""


@dataclass(frozen=True)
class TransferModel:
    """Which effects weaken the signal.

    Parameters
    ----------
    ctf
        The contrast transfer at each particle's own defocus.
    dose
        Radiation damage by the exposure before each view.
    ice_thickness_angstrom
        Inelastic loss in ice of this thickness, and each view's share of the exposure; 0 does not.
    """

    ctf: bool = True
    dose: bool = True
    ice_thickness_angstrom: float = 0.0


ViewHeights = Float[Tensor, "particles views"]
"""`(p, v)` Å along the beam from the specimen's centre."""


def find_heights(views: SeriesViews, positions_angstrom: Vectors) -> ViewHeights:
    """Find how high each particle lies along the beam in each view."""
    return torch.einsum("vj,pj->pv", views.matrices[:, 2, :3], positions_angstrom)


def find_defocus(views: SeriesViews, heights_angstrom: ViewHeights) -> tuple[ViewHeights, ViewHeights]:
    """Find the two principal defoci at heights, Å; those of a view without defocus count from 0."""
    series = views.series
    u, v = (
        torch.from_numpy(np.nan_to_num(values)) + series.hand * heights_angstrom
        for values in (series.defocus_u_angstrom, series.defocus_v_angstrom)
    )
    return u, v


def compute_factors(
    views: SeriesViews, box: int, pixel_size_angstrom: float, model: TransferModel
) -> Float[Tensor, "views y kx"]:
    """Amplitude with which each frequency reaches each view, whatever the particle: dose and thickness.

    Parameters are those of `compute_transfer`.

    Returns
    -------
    Tensor
        `(v, n, n // 2 + 1)` float32.
    """
    series = views.series
    factors = torch.ones(len(series), box, box // 2 + 1)
    if model.dose:
        exposures = torch.tensor(series.pre_exposure_e_per_a2, dtype=torch.float32)
        factors = factors * exposure_filter(
            (box, box), pixel_size_angstrom, exposures, series.optics.voltage_kv
        )
    if model.ice_thickness_angstrom:
        shares = view_weights(
            torch.tensor(series.beam_cosines),
            torch.tensor(series.exposure_e_per_a2),
            model.ice_thickness_angstrom,
        )
        factors = factors * shares.to(factors)[:, None, None]
    return factors.to(views.images.device)


def describe_phases(
    views: SeriesViews, heights_angstrom: ViewHeights, side_angstrom: float, model: TransferModel
) -> Float[Tensor, "particles views 5"]:
    """Describe the transfer functions of `compute_transfer` by their phases k·Q·k + a |k|⁴ + φ.

    Parameters
    ----------
    views
        The views.
    heights_angstrom
        `(p, v)` of `find_heights`.
    side_angstrom
        Of the crops.
    model
        What is accounted for.

    Returns
    -------
    Tensor
        `(p, v, 5)` Qxx, Qxy, Qyy, a and φ for k in pixels of the crops' transforms; 0 and φ = π / 2 without a
        transfer function. float64.
    """
    series, optics = views.series, views.series.optics
    absent = heights_angstrom.new_tensor([0.0, 0.0, 0.0, 0.0, math.pi / 2])
    known = torch.from_numpy(np.isfinite(series.mean_defocus_angstrom) & model.ctf)
    u, v = find_defocus(views, heights_angstrom)
    form = defocus_form(u, v, torch.from_numpy(np.nan_to_num(series.defocus_angle_deg)))
    length = optics.wavelength_angstrom
    quartic = -0.5 * math.pi * optics.cs_mm * ANGSTROM_PER_MILLIMETRE * length**3 / side_angstrom**4
    start = torch.deg2rad(torch.tensor(series.phase_shift_deg)) + math.asin(optics.amplitude_contrast)
    rest = torch.stack([torch.full_like(start, quartic), start], dim=-1).expand(len(u), -1, -1)
    phases = torch.cat([form * (math.pi * length / side_angstrom**2), rest], dim=-1)
    return torch.where(known[:, None], phases, absent)


def compute_transfer(
    views: SeriesViews,
    heights_angstrom: ViewHeights,
    box: int,
    pixel_size_angstrom: float,
    model: TransferModel,
) -> Transfer:
    """Amplitude with which each frequency of a particle reaches each view.

    Parameters
    ----------
    views
        The views.
    heights_angstrom
        `(p, v)` of `find_heights`.
    box
        Side n of the crops.
    pixel_size_angstrom
        Of the crops.
    model
        What is accounted for. A view without defocus counts as without CTF.
    """
    series, device = views.series, views.images.device
    factors = compute_factors(views, box, pixel_size_angstrom, model)
    known = np.isfinite(series.mean_defocus_angstrom)
    if not (model.ctf and known.any()):
        return factors.expand(len(heights_angstrom), -1, -1, -1)
    defocus_u, defocus_v = find_defocus(views, heights_angstrom)
    optics = series.optics
    ctf = ctf_2d(
        (box, box),
        pixel_size_angstrom,
        defocus_u_angstrom=defocus_u.float().to(device),
        defocus_v_angstrom=defocus_v.float().to(device),
        defocus_angle_deg=torch.tensor(series.defocus_angle_deg, dtype=torch.float32, device=device),
        voltage_kv=optics.voltage_kv,
        cs_mm=optics.cs_mm,
        amplitude_contrast=optics.amplitude_contrast,
        phase_shift_deg=torch.tensor(series.phase_shift_deg, dtype=torch.float32, device=device),
    )
    if not known.all():
        ctf[:, torch.from_numpy(~known)] = 1.0
    return ctf * factors


def measure_noise(slices: ParticleSlices) -> Float[Tensor, "views rings"]:
    """Mean power of the crops of each view, ring by ring: the noise, for the particle itself is faint in it.

    Parameters
    ----------
    slices
        `(p, v, n, n // 2 + 1)` of some fifty particles or more; those that are zero do not count.

    Returns
    -------
    Tensor
        `(v, rings)` positive, for the rings of `verglas.ops.statistics.fourier_shells`.
    """
    size = slices.shape[-2]
    seen = (slices[..., 1, 1] != 0).sum(0)
    power = slices.abs().square().sum(0) / seen.clamp(min=1)[:, None, None]
    shell = fourier_shells((size, size), slices.device).reshape(-1)
    samples = torch.bincount(shell).to(power)
    rings = power.new_zeros(len(power), len(samples))
    rings = rings.index_add_(1, shell, power.reshape(len(power), -1)) / samples
    # The mean was taken out of the crops, which empties the innermost ring.
    rings[:, 0] = rings[:, 1]
    rings = torch.maximum(rings, 1e-3 * rings.mean(-1, keepdim=True))
    return torch.where(seen[:, None] > 0, rings, 1.0)
