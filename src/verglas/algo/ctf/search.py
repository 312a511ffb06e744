"""Correlation of flat spectra with the CTF of every defocus, and what can be read off it.

For each row of a view (tiles at one height, in one direction) the correlation over a grid of defoci is found once, as
one matrix product. Any hypothesis on defocus, astigmatism and hand then is a sum over rows, each looked up at
its own defocus.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from verglas.algo.ctf.background import flatten_spectra, ring_weights
from verglas.algo.ctf.spectra import ViewSpectra
from verglas.algo.ctf.tiles import window_overlap
from verglas.model import Optics

FloatArray = npt.NDArray[np.floating]


_LEAST_KEPT = 0.1


@dataclass(frozen=True)
class DefocusGrid:
    """Equally spaced defoci, Å."""

    start: float
    stop: float
    step: float = 50.0

    @property
    def values(self) -> FloatArray:
        """`(f,)`."""
        return self.start + self.step * np.arange(math.floor((self.stop - self.start) / self.step) + 1)


@dataclass(frozen=True, eq=False)
class FilterBank:
    """What the rows of one view say of each defocus.

    Parameters
    ----------
    correlation
        `(r, f)` weighted sum of ripple times rings, for each row and defocus.
    norm
        `(f,)` weighted sum of the squared rings, the same for every row but for its weight.
    curvature
        `(f,)` the same of their derivatives after the defocus: how sharply a correlation peaks.
    weight
        `(r,)` mean number of independent coefficients in the rings of each row.
    depth_angstrom, direction_deg
        `(r,)` of each row.
    grid
        The defoci.
    """

    correlation: FloatArray
    norm: FloatArray
    curvature: FloatArray
    weight: FloatArray
    depth_angstrom: FloatArray
    direction_deg: FloatArray
    grid: DefocusGrid

    def look_up(self, defocus_angstrom: FloatArray, offset_angstrom: FloatArray) -> FloatArray:
        """Normalised correlation `(r, d)` of each row at `defocus (d,)` plus its own `offset (r,)`.

        Summed over the rows it is the correlation of the whole view, in standard deviations of its noise.
        """
        place = (defocus_angstrom[None] + offset_angstrom[:, None] - self.grid.start) / self.grid.step
        place = np.clip(place, 0, len(self.norm) - 1.000001)
        low = place.astype(int)
        part = place - low
        rows = np.arange(len(self.weight))[:, None]
        values = (1 - part) * self.correlation[rows, low] + part * self.correlation[rows, low + 1]
        norm = self.weight[:, None] * ((1 - part) * self.norm[low] + part * self.norm[low + 1])
        return np.asarray(values / np.sqrt(norm.sum(axis=0)))

    def score(self, defocus_angstrom: FloatArray, offset_angstrom: FloatArray) -> FloatArray:
        """`(d,)` normalised correlation of the view."""
        return np.asarray(self.look_up(defocus_angstrom, offset_angstrom).sum(axis=0))


def keep_rows(bank: FilterBank, rows: npt.NDArray[np.bool_]) -> FilterBank:
    """Leave out the other rows of a view."""
    names = ("correlation", "weight", "depth_angstrom", "direction_deg")
    return replace(bank, **{name: getattr(bank, name)[rows] for name in names})


def make_bank(
    spectra: ViewSpectra,
    optics: Optics,
    grid: DefocusGrid,
    envelope: FloatArray,
    phase_shift_deg: float = 0.0,
) -> FilterBank:
    """Correlate a view's spectra with rings of every defocus.

    Parameters
    ----------
    spectra
        Of the view.
    optics
        Voltage, Cs and amplitude contrast.
    grid
        The defoci.
    envelope
        `(k,)` how strong rings are at each frequency.
    phase_shift_deg
        Of a phase plate.
    """
    flat = flatten_spectra(spectra)
    root = np.sqrt(ring_weights(spectra.frequency))[:, None]
    loss = window_loss(spectra, optics, grid.values)
    # A tile's window damps fine rings and the noise there alike, so damped by `loss` the noise is white.
    rings = envelope[:, None] * _oscillate(spectra, optics, grid.values, phase_shift_deg) * root
    # Weighted by what is known of each frequency, and without what could be background.
    white, filters = (one - flat.basis @ (flat.basis.T @ one) for one in (rings, rings / loss))
    rows = flat.ripple.reshape(-1, flat.ripple.shape[-1])
    weight = spectra.samples.mean(axis=-1).ravel()
    groups, sectors = spectra.samples.shape[:2]
    return FilterBank(
        correlation=weight[:, None] * ((rows * root.T).astype(np.float32) @ filters.astype(np.float32)),
        norm=np.square(white).sum(axis=0),
        curvature=np.square(np.gradient(white, grid.step, axis=1)).sum(axis=0),
        weight=weight,
        depth_angstrom=np.repeat(spectra.depth_angstrom, sectors),
        direction_deg=np.tile(spectra.direction_deg, groups),
        grid=grid,
    )


def make_rings(
    spectra: ViewSpectra, optics: Optics, defocus_angstrom: FloatArray, phase_shift_deg: float = 0.0
) -> FloatArray:
    """`(k, f)` the part of CTF² that oscillates, -cos 2χ, as far as tiles of this size and tilt show it."""
    rings = _oscillate(spectra, optics, defocus_angstrom, phase_shift_deg)
    return rings * window_loss(spectra, optics, defocus_angstrom)


def _oscillate(
    spectra: ViewSpectra, optics: Optics, defocus_angstrom: FloatArray, phase_shift_deg: float
) -> FloatArray:
    square = np.square(spectra.frequency)[:, None]
    wavelength = optics.wavelength_angstrom
    phase = (
        math.pi * wavelength * defocus_angstrom[None] * square
        - 0.5 * math.pi * optics.cs_mm * 1e7 * wavelength**3 * square**2
        + math.asin(optics.amplitude_contrast)
        + math.radians(phase_shift_deg)
    )
    blur = np.exp(-0.5 * np.square(2 * math.pi * wavelength * square * spectra.depth_spread_angstrom))
    return np.asarray(-np.cos(2 * phase) * blur)


def window_loss(spectra: ViewSpectra, optics: Optics, defocus_angstrom: FloatArray) -> FloatArray:
    """`(k, f)` what the window of a tile leaves of the rings.

    A ring of period p in frequency comes from detail 1/p apart in the image. Of that the window keeps its
    autocorrelation at this distance.
    """
    lag = 2 * optics.wavelength_angstrom * np.abs(defocus_angstrom[None]) * spectra.frequency[:, None]
    kept = np.interp(lag / spectra.tile_angstrom, *window_overlap())
    return np.asarray(np.maximum(kept, _LEAST_KEPT))


def astigmatism_offsets(direction_deg: FloatArray, astigmatism: FloatArray) -> FloatArray:
    """Defocus along each direction less the mean: a cos 2α + b sin 2α, for `astigmatism` (a, b) in Å."""
    turn = np.deg2rad(2 * direction_deg)
    return np.asarray(astigmatism[0] * np.cos(turn) + astigmatism[1] * np.sin(turn))
