"""Movies with known motion for `verglas bench motion`: molecules that move frame by frame, counted by a camera.

No image is warped: `algo.simulation` moves the bodies themselves. The camera has a gain, and hot and dead pixels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from verglas.algo.simulation.detector import make_camera
from verglas.algo.simulation.movies import Motion, make_motion, simulate_movie
from verglas.algo.simulation.phantoms import make_blob_phantom
from verglas.algo.simulation.specimen import Population, Species, build_specimen
from verglas.algo.simulation.views import Conditions, View
from verglas.io.mrc import write_mrc
from verglas.model import Optics

FloatArray = npt.NDArray[np.float64]

HOT_FRACTION = 1e-4


@dataclass(frozen=True)
class Kind:
    """What one kind of exposure is like.

    Parameters
    ----------
    frames
        How many.
    exposure_e_per_a2
        Of one frame.
    pixel_size_angstrom
        Å.
    drift_pixels, local_pixels
        Way of the whole image, and standard deviation of the motion that varies over it at the end of the movie.
    """

    frames: int
    exposure_e_per_a2: float
    pixel_size_angstrom: float
    drift_pixels: float
    local_pixels: float


SINGLE_PARTICLE = Kind(40, 0.8, 0.85, 20.0, 3.0)
TILT = Kind(8, 3.0 / 8, 1.35, 6.0, 1.0)
"""3 e/Å² a tilt image in 8 frames."""


@dataclass(frozen=True, eq=False)
class Case:
    """A movie on disk with its truth.

    Parameters
    ----------
    movie, gain
        MRC files: uint16 counts, and the reference that they are multiplied by.
    kind
        Of the exposure.
    motion
        The truth.
    shape
        `(y, x)` pixels.
    """

    movie: Path
    gain: Path
    kind: Kind
    motion: Motion
    shape: tuple[int, int]


def make_case(folder: Path, name: str, kind: Kind, size: int, *, seed: int) -> Case:
    """Simulate one movie of `size`² pixels and write it with its gain reference."""
    pixel = kind.pixel_size_angstrom
    motion = _draw_motion(kind, seed)
    side = size * pixel
    body = make_blob_phantom(1500, 65.0, seed=3, sigma_angstrom=2.5)
    count = round((side / 150.0) ** 2)
    specimen = build_specimen(
        name, (side, side, 400.0), [Population(Species("body", body), count)], seed=seed
    )
    camera = make_camera((size, size), seed=seed, gain_spread=0.05, hot_fraction=HOT_FRACTION)
    view = View(np.eye(4), 15000.0, 15000.0, exposure_e_per_a2=kind.frames * kind.exposure_e_per_a2)
    frames = simulate_movie(
        specimen,
        view,
        (size, size),
        Optics(pixel),
        motion,
        camera=camera,
        conditions=Conditions(b_factor_a2=60.0, layer_angstrom=400.0),
        seed=seed,
    )
    movie, gain = folder / f"{name}.mrcs", folder / f"{name}_gain.mrc"
    write_mrc(movie, frames, voxel_size_angstrom=pixel, is_stack=True, dtype=np.uint16)
    write_mrc(gain, camera.gain, voxel_size_angstrom=pixel)
    return Case(movie, gain, kind, motion, (size, size))


def _draw_motion(kind: Kind, seed: int) -> Motion:
    """Draw a motion and scale what varies over the image to what was asked for."""
    pixel = kind.pixel_size_angstrom
    drawn = make_motion(kind.frames, seed=seed, drift_angstrom=kind.drift_pixels * pixel)
    places = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 9)] * 2), -1).reshape(-1, 2)
    local = drawn.shifts_at(kind.frames - 1, places) - drawn.trajectory_angstrom[-1]
    local -= local.mean(0)
    factor = kind.local_pixels * pixel / np.sqrt((local**2).sum(1).mean())
    return Motion(drawn.trajectory_angstrom, factor * drawn.local_angstrom)


def measure_error(found_angstrom: FloatArray, case: Case, places: FloatArray) -> float:
    """RMS error in pixels of displacements `(n, p, 2)` xy in Å at `(p, 2)` xy places (shares from the middle).

    What is constant in time at a place is not known to anybody, and does not count.
    """
    truth = np.stack([case.motion.shifts_at(frame, places) for frame in range(case.kind.frames)])
    difference = (found_angstrom - truth) / case.kind.pixel_size_angstrom
    difference -= difference.mean(0)
    return float(np.sqrt((difference**2).sum(-1).mean()))


def make_places() -> FloatArray:
    """`(p, 2)` xy places all over the image, as shares from its middle."""
    line = np.linspace(-0.45, 0.45, 10)
    x, y = np.meshgrid(line, line)
    return np.stack([x.ravel(), y.ravel()], axis=1)
