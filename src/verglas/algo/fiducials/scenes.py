"""Scenes to train the network with: what is masked, and what must not be, drawn from their shapes in projection.

A scene is drawn at the pixel size of the network. Bodies add to a phase, which the contrast transfer function turns
into contrast, and take electrons away; counting noise of the camera's efficiency comes last.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter, zoom

from verglas.algo.fiducials.network import PIXEL_ANGSTROM
from verglas.ops.ctf import ctf_2d

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

GOLD, CONTAMINATION, CARBON, BAR = 1, 2, 3, 4


@dataclass(frozen=True)
class SceneRanges:
    """Between what the parameters of scenes are drawn. The defaults are those of the shipped weights.

    Parameters
    ----------
    gold_diameter_angstrom, gold_free_path_angstrom
        Of the beads, and the length of gold that leaves 1/e of the electrons.
    contamination_angstrom
        Radius of a lump of ice.
    carbon_transmission
        Share of the electrons that a film lets pass.
    defocus_angstrom
        Underfocus.
    electrons
        Counted a pixel of 20 Å, the camera's efficiency included.
    """

    gold_diameter_angstrom: tuple[float, float] = (60.0, 220.0)
    gold_free_path_angstrom: tuple[float, float] = (80.0, 300.0)
    contamination_angstrom: tuple[float, float] = (150.0, 1200.0)
    carbon_transmission: tuple[float, float] = (0.55, 0.92)
    defocus_angstrom: tuple[float, float] = (5000.0, 70000.0)
    electrons: tuple[float, float] = (60.0, 1500.0)


class _Canvas:
    """A scene that is being drawn: phase, transmission and labels of each pixel."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size, self.rng = size, rng
        self.phase = np.zeros((size, size))
        self.transmission = np.ones((size, size))
        self.labels = np.zeros((size, size), np.int64)
        self.crowded = np.ones((size, size), np.bool_)
        steps = (np.arange(size) - size / 2 + 0.5) * PIXEL_ANGSTROM
        self.y, self.x = np.meshgrid(steps, steps, indexing="ij")
        self.reach = size * PIXEL_ANGSTROM / 2

    def smooth_field(self, grain_angstrom: float) -> FloatArray:
        """Random field of mean 0 and standard deviation about 1 that changes over some `grain_angstrom`."""
        count = max(2, int(np.ceil(2 * self.reach / grain_angstrom))) + 3
        coarse = self.rng.standard_normal((count, count))
        fine = zoom(coarse, (self.size + 2 * PIXEL_ANGSTROM) / (count - 3), order=3)
        y, x = self.rng.integers(0, np.array(fine.shape) - self.size + 1)
        return np.asarray(fine[y : y + self.size, x : x + self.size])

    def side_of_line(self, bend_angstrom: float) -> FloatArray:
        """Distance from a random line through the scene that is bent to a circle's arc, Å; positive within.

        Each side has at least a twelfth of the scene, without which nothing would tell what it is.
        """
        while True:
            angle = self.rng.uniform(0, 2 * np.pi)
            place = self.rng.uniform(-1.1, 1.1) * self.reach
            along = self.x * np.cos(angle) + self.y * np.sin(angle) - place
            across = self.y * np.cos(angle) - self.x * np.sin(angle)
            distance = bend_angstrom - np.hypot(along - bend_angstrom, across)
            if 1 / 12 < (distance > 0).mean() < 11 / 12:
                return np.asarray(distance)


def draw_scene(
    seed: int | tuple[int, ...], size: int = 128, ranges: SceneRanges | None = None
) -> tuple[npt.NDArray[np.float32], IntArray]:
    """Draw a scene.

    Parameters
    ----------
    seed
        Chooses everything.
    size
        Side, pixels of 20 Å.
    ranges
        Of the parameters; the defaults when none.

    Returns
    -------
    tuple
        `(size, size)` counts, and the class of each pixel: 0 is specimen, then `KINDS`.
    """
    rng = np.random.default_rng(seed)
    ranges = ranges or SceneRanges()
    canvas = _Canvas(size, rng)
    _add_background(canvas)
    _add_molecules(canvas)
    _add_membranes(canvas)
    for chance, add in ((0.35, _add_carbon), (0.35, _add_contamination), (0.6, _add_gold), (0.2, _add_bar)):
        if rng.uniform() < chance:
            add(canvas, ranges)
    return _expose(canvas, ranges), canvas.labels


def _add_background(canvas: _Canvas) -> None:
    """Add ice, or a cell, whose thickness changes: slowly, and at an edge."""
    rng = canvas.rng
    depth = rng.uniform(0.0, 0.25) * canvas.smooth_field(rng.uniform(1500, 6000))
    if rng.uniform() < 0.5:
        side = canvas.side_of_line(rng.uniform(2000, 30000))
        width = rng.uniform(20, 600)
        depth += rng.uniform(0.05, 0.6) / (1 + np.exp(-np.clip(side / width, -30, 30)))
    canvas.transmission *= np.exp(-depth)
    # A cell is grainier than ice, and the thicker the more.
    grain = rng.uniform(0.0, 0.06) + rng.uniform(0.0, 0.5) * (rng.uniform() < 0.5) * np.clip(depth, 0, 0.6)
    canvas.phase += grain * rng.standard_normal(canvas.phase.shape)
    # Crowded cytoplasm is coarser than carbon, whose grain is white.
    cytoplasm = gaussian_filter(rng.standard_normal(canvas.phase.shape), rng.uniform(0.8, 3.0))
    strength = rng.uniform(0.0, 0.3) * (rng.uniform() < 0.5)
    canvas.phase += strength * np.clip(depth / 0.3, 0, 1) * cytoplasm / cytoplasm.std()
    canvas.crowded = depth > np.median(depth)


def _add_molecules(canvas: _Canvas) -> None:
    """Add dark blobs of the size of ribosomes and smaller, many or few, alone or crowded."""
    rng = canvas.rng
    for _ in range(rng.integers(0, 3)):
        radius = rng.uniform(25, 140)
        count = rng.poisson(rng.uniform(0, 2.0) * (canvas.reach / radius) ** 2 / 4)
        strength, in_cell = rng.uniform(0.05, 0.5), rng.uniform() < 0.5
        for x, y in rng.uniform(-1, 1, (min(count, 400), 2)) * canvas.reach:
            row, column = (int((value + canvas.reach) / PIXEL_ANGSTROM) for value in (y, x))
            if in_cell and not canvas.crowded[row, column]:
                continue
            size = radius * rng.uniform(0.8, 1.2)
            _add_bump(canvas, x, y, size, strength * rng.uniform(0.7, 1.3))


def _add_bump(canvas: _Canvas, x: float, y: float, radius: float, height: float) -> None:
    """Add the projection of a ball to the phase."""
    pixel, reach = PIXEL_ANGSTROM, int(np.ceil(radius / PIXEL_ANGSTROM)) + 2
    column, row = (round(value / pixel + canvas.size / 2 - 0.5) for value in (x, y))
    rows = slice(max(0, row - reach), max(0, row + reach + 1))
    columns = slice(max(0, column - reach), max(0, column + reach + 1))
    distance = np.hypot(canvas.x[rows, columns] - x, canvas.y[rows, columns] - y)
    canvas.phase[rows, columns] += height * np.sqrt(np.clip(1 - (distance / radius) ** 2, 0, None))


def _add_membranes(canvas: _Canvas) -> None:
    """Add vesicles and membranes that cross the scene, seen as the projection of their shell."""
    rng = canvas.rng
    for _ in range(rng.integers(0, 5)):
        radius = np.exp(rng.uniform(np.log(150), np.log(8000)))
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 1.0) * canvas.reach
        place = np.array([np.cos(angle), np.sin(angle)]) * (
            distance + (radius if radius > canvas.reach else 0)
        )
        away = np.hypot(canvas.x - place[0], canvas.y - place[1])
        strength, leaflet = rng.uniform(0.1, 0.8), rng.uniform(18, 25)
        for layer in (-leaflet, leaflet):
            canvas.phase += strength * np.exp(-0.5 * ((away - radius - layer) / rng.uniform(8, 14)) ** 2)
        inside = np.sqrt(np.clip(1 - (away / radius) ** 2, 0, None))
        canvas.transmission *= np.exp(-rng.uniform(0, 0.15) * inside)


def _add_carbon(canvas: _Canvas, ranges: SceneRanges) -> None:
    """Add a film with a grain of its own that ends at an edge, most often the arc of a hole."""
    rng = canvas.rng
    bend = np.exp(rng.uniform(np.log(4000), np.log(40000)))
    film = canvas.side_of_line(bend) * rng.choice([-1.0, 1.0]) > 0
    grain = rng.standard_normal(film.shape)
    depth = -np.log(rng.uniform(*ranges.carbon_transmission))
    canvas.transmission *= np.where(film, np.exp(-depth), 1.0)
    canvas.phase += np.where(film, rng.uniform(0.15, 0.6) * grain + depth, 0.0)
    canvas.labels[film] = CARBON


def _add_contamination(canvas: _Canvas, ranges: SceneRanges) -> None:
    """Add lumps of ice: overlapping balls with a rough face, dark by their thickness or by diffraction."""
    rng = canvas.rng
    low, high = np.log(ranges.contamination_angstrom)
    for _ in range(rng.integers(1, 5)):
        centre = rng.uniform(-1.1, 1.1, 2) * canvas.reach
        radius = np.exp(rng.uniform(low, high))
        thickness = np.zeros_like(canvas.phase)
        for _ in range(rng.integers(2, 9)):
            size = radius * rng.uniform(0.3, 0.8)
            x, y = centre + rng.normal(0, 0.45, 2) * radius
            stretch = rng.uniform(0.6, 1.6)
            square = ((canvas.x - x) * stretch) ** 2 + ((canvas.y - y) / stretch) ** 2
            thickness = np.maximum(thickness, 2 * size * np.sqrt(np.clip(1 - square / size**2, 0, None)))
        lump = thickness > 0
        rough = 1 + 0.25 * canvas.smooth_field(rng.uniform(60, 400))
        scale = rng.uniform(1000, 3500) if radius > 400 else rng.uniform(400, 1200)
        depth = thickness * np.clip(rough, 0.2, None) / scale
        if rng.uniform() < 0.4:
            depth += lump * rng.uniform(0.2, 1.5)
        canvas.transmission *= np.exp(-depth)
        canvas.phase += 0.5 * depth
        # A brim too thin to be seen is no contamination.
        canvas.labels[depth > 0.12] = CONTAMINATION


def _add_gold(canvas: _Canvas, ranges: SceneRanges) -> None:
    """Add beads of one size, some side by side, and a few of another."""
    rng = canvas.rng
    radius = np.exp(rng.uniform(*np.log(ranges.gold_diameter_angstrom))) / 2
    path = rng.uniform(*ranges.gold_free_path_angstrom)
    places = list(rng.uniform(-1.02, 1.02, (rng.integers(1, 16), 2)) * canvas.reach)
    for place in places[: rng.integers(0, 4)]:
        angle = rng.uniform(0, 2 * np.pi)
        places.append(place + 2 * radius * rng.uniform(1.0, 1.6) * np.array([np.cos(angle), np.sin(angle)]))
    length = np.zeros_like(canvas.phase)
    for x, y in places:
        size = radius * rng.uniform(0.9, 1.1)
        for shift_y, shift_x in np.ndindex(3, 3):  # nine points a pixel: beads are as small as three of them
            offset = (np.array([shift_x, shift_y]) - 1) * PIXEL_ANGSTROM / 3
            square = (canvas.x + offset[0] - x) ** 2 + (canvas.y + offset[1] - y) ** 2
            length += 2 * np.sqrt(np.clip(size**2 - square, 0, None)) / 9
    # What lies under a lump that nothing passes cannot be seen.
    canvas.labels[(length > 0.6 * radius) & (canvas.transmission > 0.2)] = GOLD
    canvas.transmission *= np.exp(-length / path)
    canvas.phase += 0.004 * length


def _add_bar(canvas: _Canvas, ranges: SceneRanges) -> None:
    """Add a bar of the grid: nothing passes it, and its shadow has a soft edge."""
    rng = canvas.rng
    side = rng.choice([-1.0, 1.0]) * canvas.side_of_line(rng.uniform(10000, 100000))
    width = rng.uniform(15, 250)
    shadow = 1 / (1 + np.exp(np.clip(-side / width, -30, 30)))
    dark = rng.uniform(0.0, 0.08)
    canvas.transmission *= 1 - (1 - dark) * shadow
    canvas.labels[shadow > 0.5] = BAR


def _expose(canvas: _Canvas, ranges: SceneRanges) -> npt.NDArray[np.float32]:
    """Turn phase and transmission into counts."""
    rng = canvas.rng
    margin = canvas.size // 4
    phase = np.pad(canvas.phase, margin, mode="reflect")
    size = len(phase)
    low, high = np.log(ranges.defocus_angstrom)
    defocus = float(np.exp(rng.uniform(low, high)))
    transfer = ctf_2d(
        (size, size),
        PIXEL_ANGSTROM,
        defocus_u_angstrom=defocus,
        defocus_v_angstrom=defocus,
        defocus_angle_deg=0.0,
        voltage_kv=float(rng.choice([200.0, 300.0])),
        cs_mm=2.7,
        amplitude_contrast=0.1,
    )
    contrast = torch.fft.irfft2(torch.fft.rfft2(torch.from_numpy(phase)) * transfer, s=(size, size)).numpy()
    # Matter is dark under focus, whichever sign the transfer has.
    contrast *= np.sign(float(transfer[0, 0]))
    inner = slice(margin, margin + canvas.size)
    image = canvas.transmission * np.clip(1 - contrast[inner, inner], 0.02, None)
    electrons = np.exp(rng.uniform(*np.log(ranges.electrons)))
    counts = image * electrons + np.sqrt(np.maximum(image, 0.01) * electrons) * rng.standard_normal(
        image.shape
    )
    if rng.uniform() < 0.3:
        counts = gaussian_filter(counts, rng.uniform(0.3, 0.7))
    return np.asarray(counts, np.float32)
