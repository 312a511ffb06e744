"""Fourier shell correlation, of rings, shells and cones, and what is read from it.

Shell s holds the Fourier pixels whose distance from the origin, in units of one over the longest side, rounds
to s. As in RELION every pixel of the half transform counts once, so that curves agree with its programs.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from verglas.errors import UserError
from verglas.ops.statistics import fourier_shells
from verglas.shapes import Values, Vectors

Curve = Float[Tensor, " shells"]
"""`(shells,)` a value for each shell from 0 to Nyquist."""

_CONE_SPACING_DEG = 30.0


def fourier_shell_correlation(
    a: Values, b: Values, pixel_size_angstrom: float, mask: Values | None = None
) -> tuple[Curve, Curve]:
    """Correlate two images or volumes ring by ring or shell by shell.

    FSC(s) = Re Σ A conj(B) / sqrt(Σ|A|² Σ|B|²) over the pixels of shell s (Harauz & van Heel 1986).

    Parameters
    ----------
    a, b
        `(y, x)` images or `(z, y, x)` volumes of equal shape.
    pixel_size_angstrom
        Side of a pixel, Å.
    mask
        Multiplied into both first; same shape.

    Returns
    -------
    tuple
        `(shells,)` frequency in 1/Å, and the correlation; shells run from 0 to Nyquist of the longest side.

    Raises
    ------
    UserError
        When shapes differ or the pixel size is not positive.
    """
    frequency, shell, powers = _shell_powers(a, b, pixel_size_angstrom, mask)
    sums = torch.stack([torch.bincount(shell, power, len(frequency)) for power in powers])
    return frequency, _normalise(sums).to(frequency)


def conical_fsc(
    a: Float[Tensor, "z y x"],
    b: Float[Tensor, "z y x"],
    pixel_size_angstrom: float,
    axes_xyz: Vectors | None = None,
    half_angle_deg: float = 1.2 * _CONE_SPACING_DEG,
    mask: Float[Tensor, "z y x"] | None = None,
) -> tuple[Curve, Float[Tensor, "cones shells"]]:
    """Correlate two volumes shell by shell within double cones about given axes.

    Parameters
    ----------
    a, b
        `(z, y, x)` volumes.
    pixel_size_angstrom
        Side of a voxel, Å.
    axes_xyz
        `(cones, 3)` directions of any length; none is `cone_axes()`.
    half_angle_deg
        Between the axis and the surface of the cone; emClarity's 36° is the default.
    mask
        Multiplied into both first.

    Returns
    -------
    tuple
        `(shells,)` frequency in 1/Å, and `(cones, shells)` correlation. The origin belongs to every cone.

    Raises
    ------
    UserError
        When shapes differ, an axis is zero, or the angle does not lie between 0 and 90.
    """
    if not 0 < half_angle_deg <= 90:
        raise UserError(f"`half_angle_deg` must lie between 0 and 90; got {half_angle_deg}")
    axes = (cone_axes() if axes_xyz is None else axes_xyz).to(device=a.device, dtype=torch.float32)
    lengths = axes.norm(dim=-1, keepdim=True)
    if axes.ndim != 2 or bool((lengths == 0).any()):
        raise UserError("`axes_xyz` must be (cones, 3) vectors none of which is zero")
    frequency, shell, powers = _shell_powers(a, b, pixel_size_angstrom, mask)
    order = torch.argsort(shell, stable=True)
    ends = torch.bincount(shell, minlength=len(frequency)).cumsum(0).tolist()
    unit = axes / lengths
    limit = math.cos(math.radians(half_angle_deg)) - 1e-6
    directions = _directions(a)[order]
    stacked = torch.stack(powers, dim=-1)[order]
    sums = stacked.new_zeros(3, len(axes), len(frequency))
    for s, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        inside = (directions[start:end] @ unit.T).abs() >= limit if s else None
        member = stacked.new_ones(end - start, len(axes)) if inside is None else inside.to(stacked)
        sums[:, :, s] = stacked[start:end].T @ member
    return frequency, _normalise(sums).to(frequency)


def cone_axes() -> Float[Tensor, "cones 3"]:
    """Return emClarity's 37 axes, xyz: z, and twelve azimuths 30° apart at 30, 60 and 90° from it."""
    azimuth = torch.deg2rad(torch.arange(0.0, 360.0, _CONE_SPACING_DEG))
    rings = [torch.tensor([[0.0, 0.0, 1.0]])]
    for polar_deg in (30.0, 60.0, 90.0):
        polar = math.radians(polar_deg)
        rings.append(
            torch.stack(
                [
                    math.sin(polar) * azimuth.cos(),
                    math.sin(polar) * azimuth.sin(),
                    torch.full_like(azimuth, math.cos(polar)),
                ],
                dim=-1,
            )
        )
    return torch.cat(rings)


def resolution_at(frequency: Curve, fsc: Float[Tensor, "*cones shells"], threshold: float) -> Values:
    """Where curves first fall below a threshold, by linear interpolation between shells.

    Parameters
    ----------
    frequency
        `(shells,)` 1/Å, from 0.
    fsc
        `(..., shells)` curves. Shell 0, the mean, is passed over.
    threshold
        0.143, say.

    Returns
    -------
    Tensor
        `(...)` resolution in Å: the last shell's where a curve never falls, infinite where it starts below.
    """
    curve, positions = fsc[..., 1:], frequency[1:].to(fsc)
    below = curve < threshold
    crossing = below.int().argmax(-1)
    previous = (crossing - 1).clamp(min=0)
    high = curve.gather(-1, previous[..., None])[..., 0]
    low = curve.gather(-1, crossing[..., None])[..., 0]
    part = torch.where(crossing > 0, (high - threshold) / (high - low).clamp(min=1e-12), 0.0)
    place = positions[previous] + part * (positions[crossing] - positions[previous])
    resolution = torch.where(below.any(-1), 1 / place, 1 / positions[-1])
    return torch.where(below[..., 0], torch.inf, resolution)


def randomise_phases(volume: Values, first_shell: int, seed: int) -> Values:
    """Replace the phases from a shell on by those of white noise; amplitudes stay.

    Parameters
    ----------
    volume
        `(y, x)` image or `(z, y, x)` volume.
    first_shell
        Innermost shell that is changed.
    seed
        The same seed gives the same phases on every device.
    """
    noise = torch.randn(volume.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    phases: Tensor = torch.fft.rfftn(noise)
    phases = (phases / phases.abs().clamp(min=1e-300)).to(volume.device)
    transform: Tensor = torch.fft.rfftn(volume)
    changed = transform.abs() * phases.to(transform.dtype)
    changed = torch.where(
        fourier_shells(tuple(volume.shape), volume.device) >= first_shell, changed, transform
    )
    result: Tensor = torch.fft.irfftn(changed, s=tuple(volume.shape))
    return result


def phase_randomised_fsc(
    a: Values,
    b: Values,
    mask: Values,
    pixel_size_angstrom: float,
    from_resolution_angstrom: float,
    seed: int = 0,
) -> tuple[Curve, Curve, Curve, Curve]:
    """Correct a masked curve for the correlation that the mask itself makes (Chen et al. 2013).

    Phases beyond `from_resolution_angstrom` are randomised in both maps. What correlation the mask leaves
    there, FSC_n, is taken out as (FSC_t - FSC_n) / (1 - FSC_n), from two shells beyond on as RELION does.

    Parameters
    ----------
    a, b, mask
        `(z, y, x)` half maps and mask.
    pixel_size_angstrom
        Side of a voxel, Å.
    from_resolution_angstrom
        Where randomisation starts, Å; where the unmasked curve falls below 0.8 is usual.
    seed
        Of the random phases.

    Returns
    -------
    tuple
        `(shells,)` frequency 1/Å, corrected, masked and phase-randomised masked correlation.

    Raises
    ------
    UserError
        When the resolution does not lie between Nyquist and the box.
    """
    box_angstrom = max(a.shape) * pixel_size_angstrom
    if not 2 * pixel_size_angstrom <= from_resolution_angstrom <= box_angstrom:
        raise UserError(
            f"`from_resolution_angstrom` must lie between {2 * pixel_size_angstrom:g} and {box_angstrom:g}; "
            f"got {from_resolution_angstrom}"
        )
    first = round(box_angstrom / from_resolution_angstrom)
    frequency, masked = fourier_shell_correlation(a, b, pixel_size_angstrom, mask)
    a, b = randomise_phases(a, first, 2 * seed), randomise_phases(b, first, 2 * seed + 1)
    _, random = fourier_shell_correlation(a, b, pixel_size_angstrom, mask)
    corrected = ((masked - random) / (1 - random).clamp(min=1e-6)).clamp(min=0.0)
    trusted = torch.arange(len(frequency), device=frequency.device) < first + 2
    return frequency, torch.where(trusted, masked, corrected), masked, random


def count_shell_pixels(shape: tuple[int, ...]) -> Curve:
    """Count the pixels of the whole transform in each shell from 0 to Nyquist.

    Parameters
    ----------
    shape
        `(y, x)` or `(z, y, x)`.
    """
    shell = fourier_shells(shape)
    twice = torch.full((shell.shape[-1],), 2.0)
    twice[0] = 1.0
    if shape[-1] % 2 == 0:
        twice[-1] = 1.0
    counts = torch.bincount(shell.reshape(-1), twice.expand(shell.shape).reshape(-1))
    return counts[: max(shape) // 2 + 1]


def correlation_error(mask: Values) -> Curve:
    """Return the standard deviation of the correlation of two masked maps of white noise.

    A mask leaves N f of the N pixels of a shell independent, f = (Σm²)² / (n Σm⁴) over its n voxels, and the
    correlation of noise scatters as 1 / sqrt(N f). Of bands wider than one over the mask's diameter that is exact;
    a single shell that is thinner scatters less.

    Parameters
    ----------
    mask
        `(y, x)` or `(z, y, x)`.

    Returns
    -------
    Tensor
        `(shells,)` from 0 to Nyquist.

    Raises
    ------
    UserError
        When the mask is zero everywhere.
    """
    squares = mask.double().square()
    if not bool(squares.any()):
        raise UserError("the mask is zero everywhere; expected a part of the map within it")
    share = float(squares.sum() ** 2 / (squares.numel() * squares.square().sum()))
    return (count_shell_pixels(tuple(mask.shape)) * share).rsqrt()


def information_threshold(
    shell_pixels: Curve, bits: float = 0.5, symmetry_order: int = 1, diameter_fraction: float = 2 / 3
) -> Curve:
    """Return the curve above which each voxel carries `bits` of information (van Heel & Schatz 2005).

    T = (σ + (2 √σ + 1) / √n) / (1 + σ + 2 √σ / √n) with σ = (2^bits - 1) / 2, the signal-to-noise ratio of a
    half map, and n = N (3 f / 2)² / (2 g) effective voxels (emClarity takes f = 2/3). Half a bit gives the
    half-bit curve, one bit the one-bit curve.

    Parameters
    ----------
    shell_pixels
        `(shells,)` N from `count_shell_pixels`.
    bits
        Information per voxel, positive.
    symmetry_order
        Number g of asymmetric units.
    diameter_fraction
        Diameter of the object over the side of the box, f.
    """
    if not (bits > 0 and symmetry_order >= 1 and 0 < diameter_fraction <= 1):
        raise UserError(
            "`bits`, `symmetry_order` and `diameter_fraction` must be positive, at least 1 and in (0, 1]; "
            f"got {bits}, {symmetry_order} and {diameter_fraction}"
        )
    signal = (2**bits - 1) / 2
    root = torch.sqrt(shell_pixels * (1.5 * diameter_fraction) ** 2 / (2 * symmetry_order))
    root = root.clamp(min=1e-6)
    return (signal + (2 * math.sqrt(signal) + 1) / root) / (1 + signal + 2 * math.sqrt(signal) / root)


def _shell_powers(
    a: Tensor, b: Tensor, pixel_size_angstrom: float, mask: Tensor | None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Frequency of the shells; shell, and Re A conj(B), |A|² and |B|² of every pixel within Nyquist."""
    if a.shape != b.shape or a.ndim not in {2, 3} or (mask is not None and mask.shape != a.shape):
        shapes = ", ".join(str(tuple(m.shape)) for m in (a, b, mask) if m is not None)
        raise UserError(f"maps and mask must be images or volumes of equal shape; got {shapes}")
    if not (math.isfinite(pixel_size_angstrom) and pixel_size_angstrom > 0):
        raise UserError(f"`pixel_size_angstrom` must be positive; got {pixel_size_angstrom}")
    count = max(a.shape) // 2 + 1
    frequency = torch.arange(count, dtype=a.dtype, device=a.device) / (max(a.shape) * pixel_size_angstrom)
    if mask is not None:
        a, b = a * mask, b * mask
    first, second = (torch.view_as_real(torch.fft.rfftn(m)) for m in (a, b))
    shell = fourier_shells(tuple(a.shape), a.device).reshape(-1)
    powers = [(x * y).sum(-1).reshape(-1) for x, y in ((first, second), (first, first), (second, second))]
    inside = shell < count
    return frequency, shell[inside], [power[inside].double() for power in powers]


def _directions(like: Tensor) -> Tensor:
    """Return unit vectors xyz of the pixels of the half transform within Nyquist; zero at the origin."""
    size_z, size_y, size_x = like.shape
    z: Tensor = torch.fft.fftfreq(size_z, device=like.device)
    y: Tensor = torch.fft.fftfreq(size_y, device=like.device)
    x: Tensor = torch.fft.rfftfreq(size_x, device=like.device)
    shape = (size_z, size_y, len(x))
    places = [x.expand(shape), y[:, None].expand(shape), z[:, None, None].expand(shape)]
    inside = fourier_shells(tuple(like.shape), like.device) <= max(like.shape) // 2
    vectors = torch.stack([place[inside] for place in places], dim=-1)
    return torch.nn.functional.normalize(vectors, dim=-1)


def _normalise(sums: Tensor) -> Tensor:
    cross, first, second = sums
    product = torch.sqrt(first * second)
    return torch.where(product > 0, cross / product.clamp(min=torch.finfo(sums.dtype).tiny), 0.0)
