"""The image of a specimen in one view: what a perfect counter would expect to see."""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.fft

from verglas.algo.simulation.imaging import (
    contrast_transfer,
    exposure_attenuation,
    frequency_grid,
    interaction_constant,
    make_ice_noise,
    slab_transmission,
)
from verglas.algo.simulation.kernels import add_projections
from verglas.algo.simulation.orientations import pose_matrices
from verglas.algo.simulation.render import project_scatterers, stretch_of
from verglas.algo.simulation.scatterers import FloatArray, Scatterers
from verglas.algo.simulation.specimen import Specimen
from verglas.errors import UserError
from verglas.model import Optics

_LAYER_BYTES = 256 * 2**20
_LOWEST = 0.02


@dataclass(frozen=True, eq=False)
class Conditions:
    """Which effects the images have, and how strong.

    Parameters
    ----------
    ctf
        Whether the contrast transfer function acts; without it the image is 1 - 2 · phase · amplitude
        contrast.
    damage
        Whether radiation fades molecules and membranes (Grant & Grigorieff's curve).
    mean_free_path_angstrom
        Inelastic mean free path in ice, Å; infinity for no loss.
    ice_noise
        Whether the water's own structure shows, fresh in every view.
    b_factor_a2
        Fall-off exp(-B k²/4) of the signal, Å².
    mtf_frequencies_per_pixel, mtf_values
        The camera's MTF, acting on the expected image and not on the counting noise; none is a perfect one.
    noise
        Whether electrons are counted; without it images hold the expected counts.
    layer_angstrom
        Height of the depth layers that share a CTF; none chooses it so that the phase of the CTF errs by less
        than 0.05 rad at Nyquist.
    """

    ctf: bool = True
    damage: bool = True
    mean_free_path_angstrom: float = 3500.0
    ice_noise: bool = False
    b_factor_a2: float = 0.0
    mtf_frequencies_per_pixel: FloatArray | None = None
    mtf_values: FloatArray | None = None
    noise: bool = True
    layer_angstrom: float | None = None

    def __post_init__(self) -> None:
        if not self.mean_free_path_angstrom > 0:
            raise UserError(f"`mean_free_path_angstrom` must be positive; got {self.mean_free_path_angstrom}")
        if self.layer_angstrom is not None and not self.layer_angstrom > 0:
            raise UserError(f"`layer_angstrom` must be positive; got {self.layer_angstrom}")
        if (self.mtf_frequencies_per_pixel is None) != (self.mtf_values is None):
            raise UserError("an MTF needs both frequencies and values; got one of the two")


@dataclass(frozen=True, eq=False)
class View:
    """Geometry, defocus and exposure of one image.

    Parameters
    ----------
    matrix
        `(4, 4)` specimen to image, Å from the centres; row 2 is the depth along the beam.
    defocus_u_angstrom, defocus_v_angstrom, defocus_angle_deg, phase_shift_deg
        At the specimen's centre.
    pre_exposure_e_per_a2, exposure_e_per_a2
        Exposure before and of this image; only damage depends on them here.
    hand
        +1 when larger depth is larger defocus.
    """

    matrix: FloatArray
    defocus_u_angstrom: float
    defocus_v_angstrom: float
    defocus_angle_deg: float = 0.0
    phase_shift_deg: float = 0.0
    pre_exposure_e_per_a2: float = 0.0
    exposure_e_per_a2: float = 0.0
    hand: int = 1


class _Copies(NamedTuple):
    """Copies of one body as the kernel takes them."""

    scatterers: Scatterers
    rotations: FloatArray
    places: FloatArray
    own_depth: bool
    fades: bool


class _Grid(NamedTuple):
    """The padded image and the finer grid that is drawn on."""

    shape: tuple[int, int]
    padded: tuple[int, int]
    margin: tuple[int, int]
    oversampling: int
    pixel: float


def expect_view(
    specimen: Specimen,
    view: View,
    shape: tuple[int, int],
    optics: Optics,
    conditions: Conditions,
    rng: np.random.Generator | None = None,
) -> npt.NDArray[np.float32]:
    """Share of the incoming electrons expected in each pixel.

    Bodies are drawn on a finer grid, sorted by depth into layers, cropped in Fourier space to the pixel size,
    each layer multiplied by the CTF at its depth and added up (weak phase, projection within a layer). The
    sum is multiplied by what the slab, gold and carbon let pass, and clipped below 0.02.

    Parameters
    ----------
    specimen, view
        What is seen, and how.
    shape
        `(y, x)` pixels.
    optics
        Pixel size, voltage, Cs, amplitude contrast.
    conditions
        Which effects act. MTF and counting are not among them yet.
    rng
        Source of the ice noise; needed when the conditions ask for it.

    Raises
    ------
    UserError
        When the Gaussians are too narrow for the pixel size.
    """
    copies = _list_copies(specimen, view.matrix)
    grid = _choose_grid(shape, copies, view, optics, conditions)
    spectrum = _sum_layers(copies, grid, view, optics, conditions)
    cosine = abs(float(view.matrix[2, 2]))
    if conditions.ice_noise and specimen.extent_angstrom[2]:
        if rng is None:
            raise UserError("ice noise needs a source of randomness; got none")
        spectrum += _sum_ice(specimen.extent_angstrom[2], grid, view, optics, conditions, rng)
    contrast = scipy.fft.irfft2(spectrum, s=grid.padded)
    top, left = grid.margin
    contrast = contrast[top : top + shape[0], left : left + shape[1]]
    image = 1.0 - 2.0 * np.float32(interaction_constant(optics.voltage_kv)) * contrast
    for absorber in specimen.absorbers:
        length = (
            project_scatterers(absorber.scatterers, view.matrix, shape, grid.pixel) / absorber.potential_v
        )
        image *= np.exp(-length / absorber.mean_free_path_angstrom).astype(np.float32)
    image = np.maximum(image, np.float32(_LOWEST))
    if specimen.extent_angstrom[2]:
        thickness = specimen.extent_angstrom[2]
        image *= np.float32(slab_transmission(thickness, cosine, conditions.mean_free_path_angstrom))
    return np.asarray(image, dtype=np.float32)


def layer_height(optics: Optics) -> float:
    """Height of a layer whose edges err by 0.05 radians in the CTF's phase at Nyquist, Å.

    Half a layer of defocus dz/2 turns the phase by π λ k² dz/2, with k = 1 / (2 pixels).
    """
    return 8 * 0.05 * optics.pixel_size_angstrom**2 / (math.pi * optics.wavelength_angstrom)


def _list_copies(specimen: Specimen, matrix: FloatArray) -> list[_Copies]:
    copies = []
    table = specimen.particles
    for species in specimen.species:
        rows = specimen.rows_of(species)
        if len(rows) and len(species.scatterers):
            poses = pose_matrices(table.angles_deg[rows])
            places = table.positions_angstrom[rows] @ matrix[:3, :3].T + matrix[:3, 3]
            copies.append(_Copies(species.scatterers, matrix[:3, :3] @ poses, places, False, True))
    fixed = [(specimen.membranes, True)]
    fixed += [(film, False) for film in specimen.films]
    fixed += [(absorber.scatterers, False) for absorber in specimen.absorbers]
    for scatterers, fades in fixed:
        if len(scatterers):
            one = np.ascontiguousarray(matrix[None, :3, :3])
            copies.append(_Copies(scatterers, one, matrix[None, :3, 3].copy(), True, fades))
    return copies


def _choose_grid(
    shape: tuple[int, int], copies: list[_Copies], view: View, optics: Optics, conditions: Conditions
) -> _Grid:
    pixel = optics.pixel_size_angstrom
    narrowest = min((float(c.scatterers.sigmas_angstrom.min()) for c in copies), default=pixel)
    # What lies beyond the fine grid's Nyquist folds into the image's band with less than 1e-3 of its
    # amplitude.
    oversampling = max(1, math.ceil(0.5 + 0.592 * pixel / (narrowest * stretch_of(view.matrix))))
    if oversampling > 8:
        raise UserError(
            f"the narrowest Gaussian has a σ of {narrowest:g} Å, too narrow for pixels of {pixel:g} Å; "
            f"expected scatterers coarsened to about the pixel size"
        )
    spread = 0.0
    if conditions.ctf:
        # The transfer function moves detail at Nyquist sideways by λ Δf k; the margin keeps it from wrapping
        # round.
        deepest = max((float(np.abs(c.places[:, 2]).max()) for c in copies), default=0.0)
        defocus = max(abs(view.defocus_u_angstrom), abs(view.defocus_v_angstrom)) + deepest
        spread = optics.wavelength_angstrom * defocus / (2 * pixel)
    margin = math.ceil(spread / pixel) + 4
    height, width = (int(scipy.fft.next_fast_len(n + 2 * margin, real=True)) for n in shape)
    margins = ((height - shape[0]) // 2, (width - shape[1]) // 2)
    return _Grid(shape, (height, width), margins, oversampling, pixel)


def _sum_layers(
    copies: list[_Copies], grid: _Grid, view: View, optics: Optics, conditions: Conditions
) -> npt.NDArray[np.complex64]:
    """Transform of the projected potential times CTF and damage, on the padded grid."""
    step = conditions.layer_angstrom or layer_height(optics)
    if not conditions.ctf:
        step = 1e12
    attenuation = _attenuation(grid, view, optics, conditions)
    fine = (grid.padded[0] * grid.oversampling, grid.padded[1] * grid.oversampling)
    batch = max(1, _LAYER_BYTES // (4 * fine[0] * fine[1]))
    spectrum = np.zeros((grid.padded[0], grid.padded[1] // 2 + 1), dtype=np.complex64)
    for fades in (True, False):
        group = [c for c in copies if c.fades == fades]
        if not group:
            continue
        low, high = _layer_range(group, step)
        for first in range(low, high + 1, batch):
            layers = np.zeros((min(batch, high + 1 - first), *fine), dtype=np.float32)
            touched = np.zeros(len(layers), dtype=np.bool_)
            for c in group:
                _draw(layers, touched, c, grid, view, (first - 0.5) * step, step)
            for i in np.flatnonzero(touched):
                part = _crop_spectrum(scipy.fft.rfft2(layers[i]), grid)
                part *= _transfer(grid, view, optics, conditions, (first + i) * step)
                spectrum += part * attenuation if fades else part
    return spectrum


def _sum_ice(
    thickness: float,
    grid: _Grid,
    view: View,
    optics: Optics,
    conditions: Conditions,
    rng: np.random.Generator,
) -> npt.NDArray[np.complex64]:
    """Transform of the ice of a slab about the plane z = 0 times CTF, on the padded grid.

    Each beam crosses the slab at depths of its own, so the layers of a tilted slab are bands across the image.
    """
    matrix = view.matrix
    slopes = matrix[2, :2] @ np.linalg.inv(matrix[:2, :2])
    y, x = (
        grid.pixel * (np.arange(n) - margin - size // 2)
        for n, margin, size in zip(grid.padded, grid.margin, grid.shape, strict=True)
    )
    depth = slopes[0] * (x - matrix[0, 3]) + slopes[1] * (y - matrix[1, 3])[:, None] + matrix[2, 3]
    depth = depth.astype(np.float32)
    reach = thickness / 2 / max(abs(float(matrix[2, 2])), 1e-3)
    step = (conditions.layer_angstrom or layer_height(optics)) if conditions.ctf else 1e12
    first, last = (math.floor(edge / step + 0.5) for edge in (depth.min() - reach, depth.max() + reach))
    carrier, advance = _layer_phases(grid, view, optics, conditions, first * step, step)
    spectrum = np.zeros((grid.padded[0], grid.padded[1] // 2 + 1), dtype=np.complex64)
    noise = np.zeros(grid.padded, dtype=np.float32)
    for layer in range(first, last + 1):
        top, bottom = (layer + 0.5) * step, (layer - 0.5) * step
        path = np.minimum(depth + reach, top) - np.maximum(depth - reach, bottom)
        rows = np.flatnonzero((path > 0).any(axis=1))
        noise[:] = 0
        if len(rows):
            band = slice(rows[0], rows[-1] + 1)
            through = np.maximum(path[band], 0)
            noise[band] = make_ice_noise(through.shape, grid.pixel, through, rng)
            spectrum += scipy.fft.rfft2(noise) * carrier.imag
        carrier *= advance
    return spectrum


def _layer_phases(
    grid: _Grid, view: View, optics: Optics, conditions: Conditions, depth: float, step: float
) -> tuple[npt.NDArray[np.complex64], npt.NDArray[np.complex64]]:
    """Wave whose imaginary part is the transfer at one depth, and what takes it one layer on."""
    sine = _transfer(grid, view, optics, conditions, depth)
    if not conditions.ctf:
        return 1j * sine, np.ones_like(sine, dtype=np.complex64)
    turned = replace(view, phase_shift_deg=view.phase_shift_deg + 90)
    cosine = _transfer(grid, turned, optics, conditions, depth)
    kx, ky = frequency_grid(grid.padded, grid.pixel)
    turn = view.hand * math.pi * optics.wavelength_angstrom * step * (kx**2 + ky**2)
    return (cosine + 1j * sine).astype(np.complex64), np.exp(1j * turn).astype(np.complex64)


def _draw(
    layers: npt.NDArray[np.float32],
    touched: npt.NDArray[np.bool_],
    copies: _Copies,
    grid: _Grid,
    view: View,
    start: float,
    step: float,
) -> None:
    s = grid.oversampling
    centre = (
        float((grid.margin[0] + grid.shape[0] // 2) * s),
        float((grid.margin[1] + grid.shape[1] // 2) * s),
    )
    add_projections(
        layers,
        touched,
        copies.rotations,
        copies.places,
        copies.scatterers.positions_angstrom,
        copies.scatterers.weights_v_a3,
        copies.scatterers.sigmas_angstrom,
        stretch_of(view.matrix),
        grid.pixel / s,
        centre,
        start,
        step,
        copies.own_depth,
        False,
    )


def _layer_range(group: list[_Copies], step: float) -> tuple[int, int]:
    """First and last layer that the group reaches; layer i is centred on the depth i · step."""
    depths = []
    for c in group:
        if c.own_depth:
            depths.append(c.scatterers.positions_angstrom @ c.rotations[0, 2] + c.places[0, 2])
        else:
            depths.append(c.places[:, 2])
    low, high = min(d.min() for d in depths), max(d.max() for d in depths)
    return math.floor(low / step + 0.5), math.floor(high / step + 0.5)


def _crop_spectrum(spectrum: npt.NDArray[Any], grid: _Grid) -> npt.NDArray[Any]:
    """Keep the frequencies below the image's Nyquist, as Fourier binning does."""
    height, width = grid.padded
    if grid.oversampling == 1:
        return spectrum
    result = np.empty((height, width // 2 + 1), dtype=spectrum.dtype)
    upper = (height + 1) // 2
    columns = width // 2 + 1
    result[:upper] = spectrum[:upper, :columns]
    result[upper:] = spectrum[len(spectrum) - (height - upper) :, :columns]
    # At Nyquist itself both signs meet in one coefficient, which only one of them would fill.
    if height % 2 == 0:
        result[height // 2] = 0
    if width % 2 == 0:
        result[:, width // 2] = 0
    result /= grid.oversampling**2
    return result


def _transfer(
    grid: _Grid, view: View, optics: Optics, conditions: Conditions, depth: float
) -> npt.NDArray[np.float32]:
    kx, ky = frequency_grid(grid.padded, grid.pixel)
    envelope = np.exp(-conditions.b_factor_a2 / 4 * (kx**2 + ky**2))
    if not conditions.ctf:
        return np.asarray(optics.amplitude_contrast * envelope, dtype=np.float32)
    transfer = contrast_transfer(
        kx,
        ky,
        optics,
        defocus_u_angstrom=view.defocus_u_angstrom + view.hand * depth,
        defocus_v_angstrom=view.defocus_v_angstrom + view.hand * depth,
        defocus_angle_deg=view.defocus_angle_deg,
        phase_shift_deg=view.phase_shift_deg,
    )
    return np.asarray(transfer * envelope, dtype=np.float32)


def _attenuation(grid: _Grid, view: View, optics: Optics, conditions: Conditions) -> npt.NDArray[np.float32]:
    kx, ky = frequency_grid(grid.padded, grid.pixel)
    if not conditions.damage:
        return np.ones((1, 1), dtype=np.float32)
    return exposure_attenuation(
        np.hypot(kx, ky), view.pre_exposure_e_per_a2, view.exposure_e_per_a2, optics.voltage_kv
    ).astype(np.float32)
