"""Micrographs and movies: one view, whole or in frames that move."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from verglas.algo.simulation.detector import Camera, apply_mtf, count_electrons
from verglas.algo.simulation.scatterers import FloatArray, Scatterers
from verglas.algo.simulation.specimen import Specimen
from verglas.algo.simulation.supports import Absorber
from verglas.algo.simulation.tilt_series import expose
from verglas.algo.simulation.views import Conditions, View, expect_view
from verglas.errors import UserError
from verglas.model import Optics
from verglas.runtime import map_threads


@dataclass(frozen=True, eq=False)
class Motion:
    """How far the specimen has moved in each frame, in the image.

    A point at x, y (shares of the image's width and height from its centre, -0.5 to 0.5) has moved in frame
    f by

        trajectory[f] + Σ_p t^p (c_p1 x + c_p2 x² + c_p3 y + c_p4 y² + c_p5 x y)

    with t = f / (frames - 1) and p = 1, 2, 3, from where it is in the specimen's own frame. Correcting the
    movie takes this away again.

    Parameters
    ----------
    trajectory_angstrom
        `(frames, 2)` xy, Å.
    local_angstrom
        `(2, 3, 5)` coefficients c for x and y, Å.
    """

    trajectory_angstrom: FloatArray
    local_angstrom: FloatArray

    def __post_init__(self) -> None:
        trajectory = np.asarray(self.trajectory_angstrom, dtype=np.float64)
        local = np.asarray(self.local_angstrom, dtype=np.float64)
        if trajectory.ndim != 2 or trajectory.shape[1] != 2 or local.shape != (2, 3, 5):
            raise UserError(
                f"a motion needs a trajectory (frames, 2) and coefficients (2, 3, 5); "
                f"got {trajectory.shape} and {local.shape}"
            )
        object.__setattr__(self, "trajectory_angstrom", trajectory)
        object.__setattr__(self, "local_angstrom", local)

    def __len__(self) -> int:
        return len(self.trajectory_angstrom)

    def shifts_at(self, frame: int, places: FloatArray) -> FloatArray:
        """`(n, 2)` xy in Å by which points at `(n, 2)` places (shares of the image) have moved in a frame."""
        x, y = places[:, 0], places[:, 1]
        terms = np.stack([x, x**2, y, y**2, x * y])
        t = frame / max(len(self) - 1, 1)
        powers = np.array([t, t**2, t**3])
        local = np.einsum("p,cpk,kn->nc", powers, self.local_angstrom, terms)
        return np.asarray(self.trajectory_angstrom[frame] + local)


def make_motion(
    frames: int, *, seed: int, drift_angstrom: float = 20.0, local_angstrom: float = 4.0
) -> Motion:
    """Draw a smooth motion: fast at first, as beams set ice moving, and slower later; frame 0 has not moved.

    Parameters
    ----------
    frames
        Number of frames.
    seed
        Chooses the motion.
    drift_angstrom
        Length of the way of the whole image.
    local_angstrom
        Standard deviation of the coefficients of the local motion.
    """
    if frames < 1:
        raise UserError(f"`frames` must be at least 1; got {frames}")
    rng = np.random.default_rng([seed, 7])
    t = np.arange(frames) / max(frames - 1, 1)
    start, bend = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.5)
    way = drift_angstrom * (1 - np.exp(-3 * t)) / (1 - np.exp(-3))
    angle = start + bend * t
    trajectory = np.stack([way * np.cos(angle), way * np.sin(angle)], axis=1)
    return Motion(trajectory, rng.normal(0, local_angstrom, (2, 3, 5)))


def simulate_micrograph(
    specimen: Specimen,
    view: View,
    shape: tuple[int, int],
    optics: Optics,
    *,
    conditions: Conditions | None = None,
    seed: int = 0,
) -> npt.NDArray[np.float32]:
    """One exposure without motion: `(y, x)` electrons per pixel, counts or expected counts.

    Parameters
    ----------
    specimen, view
        What is seen, and how; the exposure is the view's.
    shape
        `(y, x)` pixels.
    optics
        Of the image.
    conditions
        Which effects act; none is all of them but ice noise.
    seed
        Chooses the noise.
    """
    rng = np.random.default_rng([seed, 8])
    return expose(specimen, view, shape, optics, conditions or Conditions(), rng)


def simulate_movie(
    specimen: Specimen,
    view: View,
    shape: tuple[int, int],
    optics: Optics,
    motion: Motion,
    *,
    camera: Camera | None = None,
    conditions: Conditions | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> npt.NDArray[np.uint16]:
    """Count every frame of one exposure, as the camera writes them.

    The bodies themselves move, frame by frame; no image is warped. Each frame has its share of the view's
    exposure and the damage that the frames before it did.

    Parameters
    ----------
    specimen, view
        What is seen, and how; the view's exposure is that of the whole movie.
    shape
        `(y, x)` pixels.
    optics
        Of the frames.
    motion
        As many frames as it has are made.
    camera
        Gain and bad pixels; none is a perfect camera. Multiply frames by `camera.gain` to correct them.
    conditions
        Which effects act; frames are always counted.
    seed
        Chooses the noise, frame by frame.
    workers
        Threads; none is as many as torch may use.

    Returns
    -------
    ndarray
        `(frames, y, x)`.
    """
    effects = conditions or Conditions()
    share = view.exposure_e_per_a2 / len(motion)
    frames = np.empty((len(motion), *shape), dtype=np.uint16)

    def make(i: int) -> None:
        rng = np.random.default_rng([seed, 9, i])
        moved = _move_specimen(specimen, view, shape, optics, motion, i)
        before = view.pre_exposure_e_per_a2 + i * share
        part = replace(view, pre_exposure_e_per_a2=before, exposure_e_per_a2=share)
        expected = expect_view(moved, part, shape, optics, effects, rng)
        expected *= np.float32(share * optics.pixel_size_angstrom**2)
        if effects.mtf_frequencies_per_pixel is not None and effects.mtf_values is not None:
            expected = apply_mtf(expected, effects.mtf_frequencies_per_pixel, effects.mtf_values)
        frames[i] = count_electrons(expected, rng, camera)

    map_threads(make, range(len(motion)), workers)
    return frames


def _move_specimen(
    specimen: Specimen, view: View, shape: tuple[int, int], optics: Optics, motion: Motion, frame: int
) -> Specimen:
    """Shift every molecule, and every Gaussian of what is not molecules, by the motion where it is seen."""
    sides = np.array([shape[1], shape[0]]) * optics.pixel_size_angstrom
    back = np.linalg.inv(view.matrix[:3, :3])

    def shifted(positions: FloatArray) -> FloatArray:
        seen = positions @ view.matrix[:3, :3].T + view.matrix[:3, 3]
        shifts = motion.shifts_at(frame, seen[:, :2] / sides)
        return np.asarray(positions + shifts @ back[:, :2].T)

    def moved(body: Scatterers) -> Scatterers:
        return Scatterers(shifted(body.positions_angstrom), body.weights_v_a3, body.sigmas_angstrom)

    return replace(
        specimen,
        particles=replace(
            specimen.particles, positions_angstrom=shifted(specimen.particles.positions_angstrom)
        ),
        membranes=moved(specimen.membranes),
        films=tuple(moved(film) for film in specimen.films),
        absorbers=tuple(
            Absorber(moved(a.scatterers), a.potential_v, a.mean_free_path_angstrom)
            for a in specimen.absorbers
        ),
    )
