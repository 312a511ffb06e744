"""Defocus, astigmatism, tilt and phase shift of a single image, from the spectra of its cells.

The first search takes every slope that a stage can have, without astigmatism; the best few that differ then get
astigmatism and are refined with all unknowns free. What the second best reaches tells how far the best can be
trusted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from verglas.algo.ctf.background import flatten_spectra
from verglas.algo.ctf.fit import SearchRange, limit_search
from verglas.algo.ctf.search import DefocusGrid, FilterBank, astigmatism_offsets, make_bank, make_rings
from verglas.algo.ctf.spectra import CellSpectra, ViewSpectra
from verglas.algo.ctf.surface import (
    USUAL_SLOPE,
    SurfaceFit,
    SurfaceModel,
    fit_plane,
    fit_surface,
    make_model,
)
from verglas.algo.ctf.tiles import window_spread
from verglas.model import Optics

FloatArray = npt.NDArray[np.floating]

STEEPEST_DEG = 65.0
"""Largest tilt that is looked for."""

DISTINCT_ANGSTROM = 1000.0
"""Answers farther apart than this are different ones."""

_REACH = 1000.0
_CANDIDATES = 4
_PHASES_DEG = np.arange(0.0, 180.0, 15.0)


@dataclass(frozen=True)
class ImageSearch:
    """What is looked for in a single image.

    Parameters
    ----------
    lowest_angstrom, highest_angstrom
        Range of the defocus at the image's centre.
    nodes
        Of the defocus along x, y and time.
    with_phase
        Whether the phase shift of a phase plate is unknown.
    phase_shift_deg
        The phase shift where it is known.
    """

    lowest_angstrom: float = 3000.0
    highest_angstrom: float = 50000.0
    nodes: tuple[int, int, int] = (2, 2, 1)
    with_phase: bool = False
    phase_shift_deg: float = 0.0


@dataclass(frozen=True, eq=False)
class ImageDefocus:
    """What was found.

    Parameters
    ----------
    fit, model
        The surface.
    phase_shift_deg
        Of a phase plate.
    significance, rival_significance
        Of the answer, and of the best that differs from it, in standard deviations of noise.
    search_defocus_angstrom, search_score
        `(f,)` the best of all slopes over the defocus at the centre.
    envelope
        `(k,)` relative strength of the rings.
    """

    fit: SurfaceFit
    model: SurfaceModel
    phase_shift_deg: float
    significance: float
    rival_significance: float
    search_defocus_angstrom: FloatArray
    search_score: FloatArray
    envelope: FloatArray

    @property
    def astigmatism(self) -> FloatArray:
        """`(2,)` a and b of a cos 2α + b sin 2α, Å."""
        return self.fit.values[-2:]

    @property
    def surface_angstrom(self) -> FloatArray:
        """`(t, y, x)` defocus at the nodes."""
        x, y, t = self.model.nodes
        return self.fit.values[:-2].reshape(t, y, x)

    @property
    def principal(self) -> tuple[float, float, float]:
        """Defocus u and v at the image's centre in Å, u the larger, and the angle of u from x, degrees."""
        plane, _ = fit_plane(self.model, self.fit)
        a, b = self.astigmatism
        half = math.hypot(a, b)
        return float(plane[0] + half), float(plane[0] - half), math.degrees(0.5 * math.atan2(b, a))

    @property
    def error_angstrom(self) -> float:
        """Standard error of the defocus at the centre that the noise alone makes."""
        return float(np.sqrt(fit_plane(self.model, self.fit)[1][0, 0]))

    @property
    def tilt_deg(self) -> float:
        """How far the specimen is tilted; 0 where the grid has one node."""
        plane, _ = fit_plane(self.model, self.fit)
        return math.degrees(math.atan(math.hypot(plane[1], plane[2])))

    @property
    def tilt_error_deg(self) -> float:
        """Standard error of the tilt that the noise alone makes."""
        plane, covariance = fit_plane(self.model, self.fit)
        variance = 0.5 * float(covariance[1, 1] + covariance[2, 2])
        return math.degrees(math.sqrt(variance) / (1 + plane[1] ** 2 + plane[2] ** 2))

    @property
    def tilt_axis_deg(self) -> float:
        """Direction of the line through the centre along which the defocus stays the same, from x, -90 to 90."""
        plane, _ = fit_plane(self.model, self.fit)
        angle = math.degrees(math.atan2(plane[2], plane[1])) + 90.0
        return (angle + 90.0) % 180.0 - 90.0

    def row_defocus(self) -> FloatArray:
        """`(r,)` defocus of each row of the bank."""
        return np.asarray(self.model.design @ self.fit.values)


def estimate_image(
    cells: CellSpectra, optics: Optics, search: ImageSearch, strength: FloatArray | None = None
) -> ImageDefocus:
    """Fit the defocus of an image.

    Parameters
    ----------
    cells
        Spectra of its tiles.
    optics
        Voltage, Cs and amplitude contrast.
    search
        Ranges and grid.
    strength
        `(k,)` or more, of the rings where it is known: negative where a thick specimen inverts them.

    Raises
    ------
    UserError
        When the band holds fewer than two zeros of the CTF at any defocus in the range.
    """
    frequency = cells.spectra.frequency
    wanted = SearchRange(search.lowest_angstrom, search.highest_angstrom)
    lowest = limit_search(wanted, optics, float(1 / frequency[-1]))
    model = make_model(cells, search.nodes)
    tried = DefocusGrid(lowest, search.highest_angstrom, 50.0)
    rise = _steepest(search.nodes) * float(np.abs(cells.places).sum(axis=1).max())
    grid = DefocusGrid(lowest - min(rise, lowest) - _REACH, search.highest_angstrom + rise + _REACH, 50.0)
    envelope = np.exp(-25.0 * np.square(frequency))
    if strength is not None:
        envelope = strength[: len(frequency)] / np.abs(strength[: len(frequency)]).max()
    found: list[tuple[SurfaceFit, float]] = []
    curve = np.full(len(tried.values), -np.inf)
    for phase in _PHASES_DEG if search.with_phase else [search.phase_shift_deg]:
        bank = make_bank(cells.spectra, optics, grid, envelope, float(phase))
        starts, scores = _search(bank, cells, model, tried)
        found += [(fit_surface(bank, model, start), float(phase)) for start in starts]
        curve = max(curve, scores, key=lambda one: float(one.max()))
    found.sort(key=lambda one: -one[0].evidence)
    fit, phase = found[0]
    rivals = [one.score for one, _ in found if _differ(one, fit, model)]
    for _ in range(2):
        cells = blur_by_tilt(cells, model, fit)
        if strength is None:
            envelope = fit_envelope(cells.spectra, optics, model.design @ fit.values, phase)
        fit, phase = polish(cells, optics, model, fit, phase, envelope, search.with_phase)
    rival = max(rivals, default=0.0) / max(found[0][0].score, 1e-9) * fit.score
    return ImageDefocus(fit, model, phase, fit.score, rival, tried.values, curve, envelope)


def blur_by_tilt(cells: CellSpectra, model: SurfaceModel, fit: SurfaceFit) -> CellSpectra:
    """Let a tilt blur the rings of every cell, in which the specimen lies at many heights."""
    plane, _ = fit_plane(model, fit)
    spread = window_spread() * cells.spectra.tile_angstrom * float(np.hypot(plane[1], plane[2]))
    return replace(cells, spectra=replace(cells.spectra, depth_spread_angstrom=spread))


def fit_envelope(
    spectra: ViewSpectra, optics: Optics, defocus_angstrom: FloatArray, phase_shift_deg: float = 0.0
) -> FloatArray:
    """`(k,)` how strong the rings are over frequency, by regression of all rows; 1 at low frequency.

    Of a family of two parameters: a freer curve would follow the noise, and with it favour the defocus that it was
    fitted at.
    """
    total, possible = sum_rings(spectra, optics, defocus_angstrom, phase_shift_deg)
    falls = ring_strengths(spectra.frequency)
    norm = np.maximum(falls**2 @ possible, 1e-12)
    share = np.maximum(falls @ total, 0)
    gains = 0.5 * share**2 / norm
    likely = np.exp(gains - gains.max())
    envelope = (likely * share / norm) @ falls
    return np.asarray(envelope / envelope.max() if envelope.max() > 0 else falls[0])


def ring_strengths(frequency: FloatArray) -> FloatArray:
    """`(m, k)` curves that the strength of rings over frequency may have, 1 at zero.

    The signal falls as a Gaussian, and the background that rings are measured by is counting noise and the signal
    itself.
    """
    noise, fall = (
        axis.ravel()[:, None] for axis in np.meshgrid(np.geomspace(0.1, 100, 10), np.geomspace(2, 400, 16))
    )
    return np.asarray((1 + noise) / (1 + noise * np.exp(0.5 * fall * np.square(frequency))))


def sum_rings(
    spectra: ViewSpectra, optics: Optics, defocus_angstrom: FloatArray, phase_shift_deg: float
) -> tuple[FloatArray, FloatArray]:
    """`(k,)` weighted sums of ripple times rings, and of rings squared, each row at its own defocus `(r,)`."""
    rings = make_rings(spectra, optics, defocus_angstrom, phase_shift_deg).T
    weight = spectra.samples.reshape(rings.shape)
    ripple = flatten_spectra(spectra).ripple.reshape(rings.shape)
    return (weight * ripple * rings).sum(axis=0), (weight * rings**2).sum(axis=0)


def _steepest(nodes: tuple[int, int, int]) -> float:
    return math.tan(math.radians(STEEPEST_DEG)) if max(nodes[:2]) > 1 else 0.0


def _differ(one: SurfaceFit, other: SurfaceFit, model: SurfaceModel) -> bool:
    """Whether two answers mean different defoci."""
    difference = model.design[:, :-2] @ (one.values - other.values)[:-2]
    return float(np.sqrt(np.square(difference).mean())) > DISTINCT_ANGSTROM


def _search(
    bank: FilterBank, cells: CellSpectra, model: SurfaceModel, tried: DefocusGrid
) -> tuple[list[FloatArray], FloatArray]:
    """Best starts `(p,)` that differ, the best level one, and the best slope's score over the central defocus."""
    count = len(cells.places)
    correlation = bank.correlation.reshape(count, -1, len(bank.norm)).sum(axis=1)
    weight = bank.weight.reshape(count, -1).sum(axis=1)
    first = round((tried.start - bank.grid.start) / bank.grid.step)
    length = len(tried.values)
    slopes = _list_slopes(cells, model.nodes)
    scores = np.empty((len(slopes), length))
    for i, slope in enumerate(slopes):
        shift = np.round(cells.places @ slope / bank.grid.step).astype(int)
        columns = np.clip(first + shift[:, None] + np.arange(length), 0, len(bank.norm) - 1)
        norm = (weight[:, None] * bank.norm[columns]).sum(axis=0)
        score = np.take_along_axis(correlation, columns, axis=1).sum(axis=0) / np.sqrt(norm)
        # A steep slope is less likely to begin with; of the logarithm of the likelihood a score has half its square.
        rare = float(slope @ slope) / USUAL_SLOPE**2
        scores[i] = np.where(score > 0, np.sqrt(np.maximum(score**2 - rare, 0)), score)
    curve = scores.max(axis=0)
    starts: list[FloatArray] = []
    left = curve.copy()
    while len(starts) < _CANDIDATES and np.isfinite(left).any():
        place = int(left.argmax())
        defocus = float(tried.values[place])
        slope = slopes[int(scores[:, place].argmax())]
        starts.append(_add_astigmatism(bank, cells, model, np.array([defocus, *slope])))
        left[np.abs(tried.values - defocus) < 0.5 * DISTINCT_ANGSTROM] = -np.inf
    level = scores[int(np.square(slopes).sum(axis=1).argmin())]
    plane = np.array([float(tried.values[int(level.argmax())]), 0.0, 0.0])
    return [*starts, _add_astigmatism(bank, cells, model, plane)], curve


def _list_slopes(cells: CellSpectra, nodes: tuple[int, int, int]) -> FloatArray:
    """`(s, 2)` slopes along x and y, so close that no cell's defocus is more than some 300 Å off."""
    half = float(np.abs(cells.places).max())
    steepest = _steepest(nodes)
    if not steepest or half == 0:
        return np.zeros((1, 2))
    count = min(math.ceil(steepest * half / 600.0), 12)
    line = np.linspace(-steepest, steepest, 2 * count + 1)
    x, y = (axis.ravel() for axis in np.meshgrid(line, line))
    inside = np.hypot(x, y) <= steepest * 1.01
    if nodes[0] == 1:
        inside &= x == 0
    if nodes[1] == 1:
        inside &= y == 0
    return np.stack([x[inside], y[inside]], axis=1)


def _add_astigmatism(
    bank: FilterBank, cells: CellSpectra, model: SurfaceModel, plane: FloatArray
) -> FloatArray:
    """Best of a few astigmatisms for a plane, as unknowns of the model."""
    height = np.repeat(cells.places @ plane[1:], len(bank.weight) // len(cells.places))
    moves = plane[0] + np.arange(-300.0, 301.0, 50.0)
    best, chosen = -np.inf, (float(plane[0]), 0.0, 0.0)
    ring = [(r * math.cos(t), r * math.sin(t)) for r in (200.0, 450.0) for t in np.arange(8) * np.pi / 4]
    for pair in [(0.0, 0.0), *ring]:
        offset = height + astigmatism_offsets(bank.direction_deg, np.array(pair))
        score = bank.score(moves, offset)
        if score.max() > best:
            best, chosen = float(score.max()), (float(moves[score.argmax()]), *pair)
    return np.array([*(model.plane @ np.array([chosen[0], *plane[1:]])), *chosen[1:]])


def polish(
    cells: CellSpectra,
    optics: Optics,
    model: SurfaceModel,
    fit: SurfaceFit,
    phase: float,
    envelope: FloatArray,
    with_phase: bool = False,
) -> tuple[SurfaceFit, float]:
    """Fit again with the right envelope on a finer grid, and with the phases next to the best one."""
    defocus = model.design @ fit.values
    grid = DefocusGrid(float(defocus.min()) - _REACH, float(defocus.max()) + _REACH, 25.0)

    def refit(shift: float) -> SurfaceFit:
        return fit_surface(make_bank(cells.spectra, optics, grid, envelope, shift), model, fit.values)

    if not with_phase:
        return refit(phase), phase
    tried = phase + np.array([-10.0, 0.0, 10.0])
    fits: Sequence[SurfaceFit] = [refit(float(one)) for one in tried]
    scores = np.array([one.score for one in fits])
    bend = scores[0] - 2 * scores[1] + scores[2]
    move = 5.0 * (scores[0] - scores[2]) / bend if bend < 0 else 10.0 * (scores.argmax() - 1)
    best = phase + float(np.clip(move, -15.0, 15.0))
    return refit(best), best % 180.0
