"""One half map brought onto the other by steps along the gradient: a turn and a shift.

Half sets are aligned to references of their own, so their frames may drift apart. The second map is taken for the
first, a little turned and shifted; both are whitened and weighed by their signal to noise, shell by shell.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from verglas.ops.band import Band, BandValues, choose_band
from verglas.ops.fft import radial_frequency
from verglas.ops.filters import apply_filter
from verglas.ops.fsc import fourier_shell_correlation, resolution_at
from verglas.ops.interpolation import affine_transform_volume
from verglas.ops.rotation import matrices_to_rotation_vectors, rotation_vectors_to_matrices
from verglas.ops.statistics import fourier_shells
from verglas.shapes import Rotations, Values

_ROUNDS = 6
_LARGEST_TURN_DEG = 10.0
_LARGEST_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Registration:
    """How the second half map comes to lie on the first: what was at p goes to R p + t.

    Parameters
    ----------
    rotation
        `(3, 3)` R on xyz, float64.
    shift_angstrom
        `(3,)` t.
    """

    rotation: Float[Tensor, "3 3"]
    shift_angstrom: Float[Tensor, "3"]

    @property
    def turn_deg(self) -> float:
        """Angle of the turn."""
        return float(matrices_to_rotation_vectors(self.rotation).norm())

    def displacement_angstrom(self, radius_angstrom: float) -> float:
        """Farthest way, of all places at a radius."""
        arc = torch.deg2rad(torch.tensor(self.turn_deg)) * radius_angstrom
        return float(arc + self.shift_angstrom.norm())


def stay_put() -> Registration:
    """Return the registration that moves nothing."""
    return Registration(torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))


def register_halves(
    first: Float[Tensor, "z y x"],
    second: Float[Tensor, "z y x"],
    pixel_size_angstrom: float,
    mask: Float[Tensor, "z y x"],
    symmetry: Rotations | None = None,
) -> Registration:
    """Find the turn and shift that bring the second map onto the first.

    Parameters
    ----------
    first, second
        `(n, n, n)` unfiltered half maps.
    pixel_size_angstrom
        Of a voxel.
    mask
        `(n, n, n)` around the molecule, soft.
    symmetry
        `(g, 3, 3)` operations of the point group: what would move its axes stays put.

    Returns
    -------
    Registration
        One that moves nothing when the maps do not correlate, or when it would not make them more alike.
    """
    freedoms = _find_freedoms(symmetry)
    frequency, curve = fourier_shell_correlation(first, second, pixel_size_angstrom, mask)
    found = stay_put()
    finest = float(resolution_at(frequency, curve, 0.143))
    if not freedoms.shape[1] or finest == float("inf"):
        return found
    finest = min(finest, first.shape[-1] * pixel_size_angstrom / 4)
    band = choose_band(first.shape[-1], pixel_size_angstrom, finest, device=first.device)
    before = _compare(first, second, mask, band)
    for _ in range(_ROUNDS):
        moved = move_map(second, found, pixel_size_angstrom)
        weights = _weigh_shells(first, moved, mask, pixel_size_angstrom)
        basis = differentiate_map(apply_filter(first * mask, weights, dims=3), band)
        data = _gather(apply_filter(moved * mask, weights, dims=3), band)
        step = freedoms @ _solve(basis, data, band, freedoms)
        turn = rotation_vectors_to_matrices(torch.rad2deg(step[:3])[None])[0].T
        shift = found.shift_angstrom - step[3:] * pixel_size_angstrom
        found = Registration(turn @ found.rotation, turn @ shift)
    reach = _LARGEST_SHARE * first.shape[-1] * pixel_size_angstrom
    found = _round(found)
    strayed = found.turn_deg > _LARGEST_TURN_DEG or float(found.shift_angstrom.norm()) > reach
    worse = _compare(first, move_map(second, found, pixel_size_angstrom), mask, band) <= before
    return stay_put() if strayed or worse else found


def differentiate_map(volume: Float[Tensor, "z y x"], band: Band) -> BandValues:
    """Transform a map and its derivatives by small turns and shifts, within a band.

    A map turned by the small vector ω and shifted by t is, to first order, f - (ω × r)·∇f - t·∇f.

    Parameters
    ----------
    volume
        `(n, n, n)`, zero near its borders.
    band
        Of a box of the volume's side.

    Returns
    -------
    Tensor
        `(7, k)` complex64: the map, its derivatives by ω in radians about x, y and z, and by t in voxels along x, y
        and z.
    """
    size = volume.shape[-1]
    transform = torch.fft.rfftn(torch.fft.ifftshift(volume))
    axes = (
        torch.fft.rfftfreq(size, device=volume.device),
        torch.fft.fftfreq(size, device=volume.device)[:, None],
        torch.fft.fftfreq(size, device=volume.device)[:, None, None],
    )
    dx, dy, dz = (
        torch.fft.fftshift(torch.fft.irfftn(2j * math.pi * axis * transform, s=volume.shape)) for axis in axes
    )
    line = torch.arange(size, dtype=volume.dtype, device=volume.device) - size // 2
    x, y, z = line, line[:, None], line[:, None, None]
    slopes = [y * dz - z * dy, z * dx - x * dz, x * dy - y * dx, dx, dy, dz]
    return torch.stack([_gather(part, band) for part in (volume, *(-slope for slope in slopes))])


def move_map(
    volume: Float[Tensor, "z y x"], registration: Registration, pixel_size_angstrom: float
) -> Float[Tensor, "z y x"]:
    """Turn and shift a map as a registration says, by cubic splines."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = registration.rotation
    matrix[:3, 3] = registration.shift_angstrom / pixel_size_angstrom
    return affine_transform_volume(volume, matrix, order="cubic")


def move_particles(
    positions_angstrom: Float[Tensor, "p 3"], rotations: Rotations, registration: Registration
) -> tuple[Float[Tensor, "p 3"], Rotations]:
    """Give particles of the second half set the poses with which their average lies on that of the first.

    Parameters
    ----------
    positions_angstrom, rotations
        `(p, 3)` and `(p, 3, 3)` reference to specimen, float64.
    registration
        Of the half maps.
    """
    turned = rotations @ registration.rotation.T
    return positions_angstrom - turned @ registration.shift_angstrom, turned


def _round(registration: Registration) -> Registration:
    """Keep the digits that mean something: the last ones of float32 sums differ between runs."""
    turn = matrices_to_rotation_vectors(registration.rotation[None]).round(decimals=3)
    return Registration(
        rotation_vectors_to_matrices(turn)[0], registration.shift_angstrom.round(decimals=2) + 0.0
    )


def _find_freedoms(symmetry: Rotations | None) -> Float[Tensor, "6 f"]:
    """Directions of (ω, t) that a point group leaves alone: all, those along one axis, or none."""
    kept = torch.eye(3, dtype=torch.float64) if symmetry is None else symmetry.double().mean(0)
    values, vectors = torch.linalg.eigh((kept + kept.T) / 2)
    axes = vectors[:, values > 0.5]
    none = torch.zeros_like(axes)
    return torch.cat([torch.cat([axes, none], dim=1), torch.cat([none, axes], dim=1)])


def _weigh_shells(first: Tensor, second: Tensor, mask: Tensor, pixel_size_angstrom: float) -> Values:
    """Weights that whiten the first map and count each shell by its signal to noise."""
    _, curve = fourier_shell_correlation(first, second, pixel_size_angstrom, mask)
    kept = curve.clamp(0.0, 0.999)
    shape = tuple(first.shape)
    shell = fourier_shells(shape, first.device)
    power = torch.fft.rfftn(first * mask).abs().square()
    mean = torch.bincount(shell.reshape(-1), power.reshape(-1)) / torch.bincount(shell.reshape(-1))
    weights = (kept / (1 - kept) / mean[: len(kept)].clamp(min=1e-30)).sqrt()
    weights[0] = 0.0
    inside = radial_frequency(shape, pixel_size_angstrom, device=first.device) <= 0.5 / pixel_size_angstrom
    return torch.where(inside, weights[shell.clamp(max=len(weights) - 1)], 0.0).to(first.dtype)


def _solve(basis: Tensor, data: Tensor, band: Band, freedoms: Tensor) -> Float[Tensor, " f"]:
    """Least squares for the contrast and the free moves; these in voxels and radians."""
    moves = freedoms.T.to(basis.device, basis.dtype) @ basis[1:]
    rows = torch.cat([basis[:1], moves])
    left = ((rows.conj() * band.counts) @ rows.T).real.double().cpu()
    right = ((rows.conj() * band.counts) @ data).real.double().cpu()
    found = torch.linalg.lstsq(left, right[:, None]).solution[:, 0]
    step: Tensor = found[1:] / found[0].clamp(min=1e-6)
    return step.clamp(-2.0, 2.0)


def _compare(first: Tensor, second: Tensor, mask: Tensor, band: Band) -> float:
    """Correlation within a band."""
    one, other = _gather(first * mask, band), _gather(second * mask, band)
    overlap = (one.conj() * other * band.counts).real.sum()
    powers = [(x.abs().square() * band.counts).sum() for x in (one, other)]
    return float(overlap / (powers[0] * powers[1]).sqrt().clamp(min=1e-30))


def _gather(volume: Float[Tensor, "z y x"], band: Band) -> Complex[Tensor, " k"]:
    """Transform a volume centred on voxel `n // 2` and keep what lies within a band; complex64."""
    size = volume.shape[-1]
    transform = torch.fft.rfftn(torch.fft.ifftshift(volume))
    x, y, z = band.places_xyz.long().unbind(-1)
    values: Tensor = transform[z % size, y % size, x].to(torch.complex64)
    return values
