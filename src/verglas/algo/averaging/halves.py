"""From the sums of two half sets to maps: their correlation, and the filter that follows from it."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

from verglas.ops.fft import radial_frequency
from verglas.ops.filters import apply_filter
from verglas.ops.fsc import (
    cone_axes,
    conical_fsc,
    count_shell_pixels,
    fourier_shell_correlation,
    information_threshold,
    phase_randomised_fsc,
    resolution_at,
)
from verglas.ops.projection import PaddedRfft, PaddedWeights, reconstruct_from_slices
from verglas.ops.statistics import fourier_shells
from verglas.shapes import Values

_LEAST_SHARE = 0.2
_CUT_FALL = 0.005
_RANDOMISED_FROM = 0.8
_SMOOTHING_VOXELS = 1.5
_LEAST_TRANSFER = 0.05
_STRICTEST = 0.5
_CONE_SHARE = 1 - math.cos(math.radians(36.0))


@dataclass(frozen=True, eq=False)
class HalfSums:
    """What `sum_particles` made of a half set: `(N, N, N // 2 + 1)` sum and weight with complete planes."""

    sums: PaddedRfft
    weights: PaddedWeights

    def __add__(self, other: "HalfSums") -> "HalfSums":
        """Both together."""
        return HalfSums(self.sums + other.sums, self.weights + other.weights)


@dataclass(frozen=True, eq=False)
class Curves:
    """Correlations of two half maps, shell by shell.

    Parameters
    ----------
    frequency
        `(s,)` 1/Å.
    unmasked, masked, randomised, corrected
        `(s,)` without mask, with it, with it and random phases, and the masked one corrected by that.
    cones
        `(37, s)` masked, in double cones.
    one_bit, half_bit
        `(s,)` thresholds of information.
    cone_threshold
        `(s,)` mean of the two for the fewer voxels of a cone, at most 0.5: the innermost shells have next to none.
    randomised_from_angstrom
        Where random phases begin.
    solvent_factor
        Volume of the mask over that of the molecule in it.
    """

    frequency: Values
    unmasked: Values
    masked: Values
    randomised: Values
    corrected: Values
    cones: Float[Tensor, "cones s"]
    one_bit: Values
    half_bit: Values
    cone_threshold: Values
    randomised_from_angstrom: float
    solvent_factor: float = 1.0

    @property
    def particle(self) -> Values:
        """`(s,)` the corrected curve of the molecule without the solvent in the mask."""
        return scale_solvent(self.corrected, self.solvent_factor)

    @property
    def figure_of_merit(self) -> Values:
        """`(s,)` C_ref = sqrt(2 F / (1 + F)) of the molecule: cosine of the mean phase error of the whole map."""
        kept = self.particle.clamp(0, 1)
        return torch.sqrt(2 * kept / (1 + kept))

    def cone_limits(self) -> Values:
        """`(37,)` frequency in 1/Å at which each cone is cut off: where it falls below `cone_threshold`."""
        scaled = scale_solvent(self.cones, self.solvent_factor)
        limits = [
            resolution_at(self.frequency, cone - self.cone_threshold, 0.0).reciprocal() for cone in scaled
        ]
        return torch.stack(limits)

    def resolution(self, threshold: float = 0.143) -> float:
        """Where the corrected curve falls below a threshold, Å; infinite when it begins there."""
        return float(resolution_at(self.frequency, self.corrected, threshold))


def scale_solvent(curves: Float[Tensor, "... s"], factor: float) -> Float[Tensor, "... s"]:
    """Take the solvent in the mask out of correlations: f F / (1 + (f - 1) |F|), up to the first shell without any.

    Equation 23 of the emClarity tutorial: of the power in the mask only 1 / f holds signal.

    Parameters
    ----------
    curves
        `(..., s)`.
    factor
        Volume of the mask over that of the molecule, f.
    """
    alike = (curves > 0).to(curves.dtype)
    alike[..., 0] = 1.0
    before = alike.cumprod(-1) > 0
    return torch.where(before, factor * curves / (1 + (factor - 1) * curves.abs()), curves)


def reconstruct_half(half: HalfSums, box: int) -> Float[Tensor, "z y x"]:
    """Divide a half set's sum by its weight, barely sampled voxels weighed as a fifth of their shell's mean.

    That is the thresholded sampling function of emClarity (equation 20 of its tutorial), but shell by shell, for with
    noise and damage in the weights these fall with frequency.

    Parameters
    ----------
    half
        Sum and weight.
    box
        Side n of the map.
    """
    return reconstruct_from_slices(half.sums, _threshold(half.weights), box, floor=0.0)


def _threshold(weights: PaddedWeights) -> PaddedWeights:
    """Raise what is small beside its shell."""
    shell = fourier_shells((weights.shape[0],) * 3, weights.device)
    floor = _LEAST_SHARE * _average_by_shell(weights, shell)[shell]
    return torch.maximum(weights, floor).clamp(min=torch.finfo(weights.dtype).tiny)


def _average_by_shell(values: Tensor, shell: Tensor) -> Tensor:
    flat = shell.reshape(-1)
    count = torch.bincount(flat).clamp(min=1).to(values.dtype)
    return torch.bincount(flat, values.reshape(-1).double()).to(values.dtype) / count


def correlate_halves(
    first: Float[Tensor, "z y x"],
    second: Float[Tensor, "z y x"],
    pixel_size_angstrom: float,
    mask: Float[Tensor, "z y x"],
    *,
    symmetry_order: int = 1,
    diameter_fraction: float = 2 / 3,
    solvent_factor: float = 1.0,
) -> Curves:
    """Correlate two half maps in shells and in 37 cones.

    Parameters
    ----------
    first, second
        `(n, n, n)` unfiltered half maps.
    pixel_size_angstrom
        Of a voxel.
    mask
        With soft edges; phases are randomised from where the unmasked curve falls below 0.8.
    symmetry_order
        Number of asymmetric units.
    diameter_fraction
        Diameter of the particle over the box.
    solvent_factor
        Volume of the mask over that of the molecule.
    """
    frequency, unmasked = fourier_shell_correlation(first, second, pixel_size_angstrom)
    box_angstrom = first.shape[-1] * pixel_size_angstrom
    # As in RELION from the first shell below on, not from between shells.
    below = torch.nonzero(unmasked[1:] < _RANDOMISED_FROM)
    start = box_angstrom / max(2, int(below[0, 0]) + 1 if len(below) else len(frequency) - 1)
    _, corrected, masked, randomised = phase_randomised_fsc(first, second, mask, pixel_size_angstrom, start)
    _, cones = conical_fsc(first, second, pixel_size_angstrom, mask=mask)
    counts = count_shell_pixels(tuple(first.shape)).to(frequency)
    one_bit, half_bit, cone_one, cone_half = (
        information_threshold(number, bits, symmetry_order, diameter_fraction)
        for number in (counts, counts * _CONE_SHARE)
        for bits in (1.0, 0.5)
    )
    return Curves(
        frequency,
        unmasked,
        masked,
        randomised,
        corrected,
        cones,
        one_bit,
        half_bit,
        ((cone_one + cone_half) / 2).clamp(max=_STRICTEST),
        start,
        solvent_factor,
    )


def spread_cones(
    curves: Curves, size: int, pixel_size_angstrom: float
) -> Float[Tensor, "padded padded padded_half"]:
    """Give every Fourier voxel the correlation of its shell, averaged over the cones around its direction.

    It falls to nothing behind each cone's limit: the mean of the one-bit and half-bit curves.

    Parameters
    ----------
    curves
        Of the half maps.
    size
        Side N of the transform.
    pixel_size_angstrom
        Of a voxel of the map.

    Returns
    -------
    Tensor
        `(N, N, N // 2 + 1)`, 0 to 1, origin at index 0.
    """
    cones, frequency = _cut_cones(curves), curves.frequency
    device = cones.device
    axis = torch.fft.fftfreq(size, pixel_size_angstrom, device=device)
    half = torch.fft.rfftfreq(size, pixel_size_angstrom, device=device)
    axes = torch.nn.functional.normalize(cone_axes().to(device), dim=-1)
    spread = float(np.deg2rad(18.0))
    step = float(frequency[1])
    volume = cones.new_zeros(size, size, len(half))
    for plane, z in zip(volume, axis, strict=True):
        radius = (half**2 + axis[:, None] ** 2 + z**2).sqrt()
        within = radius <= frequency[-1]
        row, column = within.nonzero(as_tuple=True)
        places = torch.stack([half[column], axis[row], z.expand(len(row))], dim=-1)
        distance = radius[within]
        cosines = ((places / distance.clamp(min=1e-12)[:, None]) @ axes.T).abs().clamp(max=1)
        near = torch.exp(-0.5 * (torch.acos(cosines) / spread) ** 2)
        place = (distance / step).clamp(max=len(frequency) - 1.001)
        low = place.long()
        part = (place - low)[:, None]
        values = cones.T[low] * (1 - part) + cones.T[low + 1] * part
        plane[within] = (near * values).sum(-1) / near.sum(-1)
    return volume


def filter_average(
    half: HalfSums, correlation: Float[Tensor, "padded padded padded_half"], box: int, *, whole: bool
) -> Float[Tensor, "z y x"]:
    """Filter the map of a half set, or of both together, by the single-particle Wiener filter.

    Every Fourier voxel is multiplied by 1 / (1 + (1 - F) / (2 F) · G / W) with F the correlation in its
    direction, W the thresholded weight and G its smoothed form (equations 16, 17 and 32 of the emClarity tutorial;
    Sindelar and Grigorieff 2012).

    Parameters
    ----------
    half
        Sum and weight.
    correlation
        `(N, N, N // 2 + 1)` of `spread_cones`.
    box
        Side n of the map.
    whole
        Whether `half` holds both half sets; a single one has half the signal to noise.
    """
    weights = _threshold(half.weights)
    signal_to_noise = (2.0 if whole else 1.0) * correlation / (1 - correlation).clamp(min=1e-3)
    smooth = gaussian_filter(weights.cpu().numpy(), _SMOOTHING_VOXELS, mode=("wrap", "wrap", "nearest"))
    gain = signal_to_noise / (signal_to_noise + torch.from_numpy(smooth).to(weights) / weights)
    return reconstruct_from_slices(half.sums * gain.to(half.sums.real.dtype), weights, box, floor=0.0)


def sharpen_map(
    volume: Float[Tensor, "z y x"],
    pixel_size_angstrom: float,
    bfactor_a2: float,
    transfer: tuple[Values, Values] | None = None,
) -> Float[Tensor, "z y x"]:
    """Sharpen a filtered map, and undo what the detector took.

    Parameters
    ----------
    volume
        `(z, y, x)`, Wiener-filtered.
    pixel_size_angstrom
        Of a voxel.
    bfactor_a2
        Positive sharpens, as exp(+B s² / 4) (equation 30 of the emClarity tutorial).
    transfer
        `(k,)` increasing frequencies in 1/Å and `(k,)` values of the detector's modulation transfer function; the
        map is divided by it.
    """
    frequency = radial_frequency(tuple(volume.shape), pixel_size_angstrom, device=volume.device)
    gain = torch.exp(bfactor_a2 / 4 * frequency**2)
    if transfer is not None:
        places, values = (one.double().cpu().numpy() for one in transfer)
        read = np.interp(frequency.double().cpu().numpy(), places, values)
        gain = gain / torch.from_numpy(read).to(gain).clamp(min=_LEAST_TRANSFER)
    return apply_filter(volume, gain.to(volume.dtype), dims=3)


def _cut_cones(curves: Curves) -> Float[Tensor, "cones s"]:
    """Correlations, positive, that fall to nothing behind each cone's own limit."""
    beyond = (curves.frequency - curves.cone_limits()[:, None]).clamp(min=0)
    scaled = scale_solvent(curves.cones, curves.solvent_factor)
    return scaled.clamp(0, 1) * torch.exp(-((beyond / _CUT_FALL) ** 2))
