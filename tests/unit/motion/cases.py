"""Movies whose motion is known: Gaussian spots that move by themselves, counted with a camera's gain."""

import numpy as np

from verglas.algo.simulation.detector import Camera, count_electrons, make_camera
from verglas.algo.simulation.movies import Motion, make_motion


def make_truth(frames: int, pixel: float, *, seed: int = 1, drift: float = 8.0, local: float = 2.0) -> Motion:
    """Drift and local motion in pixels."""
    drawn = make_motion(frames, seed=seed, drift_angstrom=drift * pixel)
    return Motion(drawn.trajectory_angstrom, drawn.local_angstrom / 4 * local * pixel)


def draw_spots(shape, places, sigma, depth):
    """One minus spots at `(n, 2)` yx pixels, each drawn where it is."""
    image = np.ones(shape)
    reach = int(np.ceil(4 * sigma))
    for y, x in places:
        rows = np.arange(max(0, int(y) - reach), min(shape[0], int(y) + reach + 1))
        columns = np.arange(max(0, int(x) - reach), min(shape[1], int(x) + reach + 1))
        profile = np.exp(-((rows - y) ** 2) / (2 * sigma**2))
        image[np.ix_(rows, columns)] -= depth * np.outer(
            profile, np.exp(-((columns - x) ** 2) / (2 * sigma**2))
        )
    return np.maximum(image, 0.05)


def make_movie(
    shape: tuple[int, int],
    motion: Motion,
    pixel: float,
    *,
    counts: float = 2.0,
    camera: Camera | None = None,
    density: float = 1 / 150,
    seed: int = 3,
):
    """`(n, y, x)` uint16 frames with `counts` electrons in an empty pixel."""
    rng = np.random.default_rng(seed)
    height, width = shape
    number = round(1.3 * height * width * density)
    places = rng.uniform((-0.07 * height, -0.07 * width), (1.07 * height, 1.07 * width), (number, 2))
    shares = np.stack([places[:, 1] / width, places[:, 0] / height], axis=1) - 0.5
    frames = np.empty((len(motion), *shape), np.uint16)
    for i in range(len(motion)):
        moved = places + motion.shifts_at(i, shares)[:, ::-1] / pixel
        frames[i] = count_electrons(counts * draw_spots(shape, moved, 2.0, 0.5), rng, camera)
    return frames


def make_bad_camera(shape: tuple[int, int], seed: int = 5) -> Camera:
    return make_camera(shape, seed=seed, hot_fraction=3e-4, dead_fraction=2e-4)
