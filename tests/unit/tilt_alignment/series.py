"""A small simulated series with gold, and geometries with known truth."""

from dataclasses import dataclass

import numpy as np

from verglas.algo.simulation.balls import BallSpecimen, draw_ball_series, gold_free_paths
from verglas.algo.simulation.tilt_scheme import Misalignment, TiltScheme, make_tilt_scheme
from verglas.algo.tilt_alignment.geometry import ViewGeometry
from verglas.model import Optics, TiltSeries

PIXEL = 10.0
SIDE = 300
BEAD = 100.0


@dataclass(frozen=True, eq=False)
class SmallSeries:
    scheme: TiltScheme
    views: np.ndarray
    beads: np.ndarray


def make_scheme(seed: int = 0, **errors) -> TiltScheme:
    """21 views of 300 x 300 pixels of 10 Å, moved by tens of pixels, the axis 3 degrees off."""
    errors = {
        "drift_angstrom": 60.0,
        "tilt_deg": 0.1,
        "axis_error_deg": 3.0,
        "magnification_drift": 0.003,
    } | errors
    return make_tilt_scheme(
        "TS_01",
        Optics(PIXEL),
        (SIDE, SIDE),
        step_deg=6.0,
        axis_angle_deg=85.0,
        misalignment=Misalignment(**errors),
        seed=seed,
    )


def place_beads(count: int, seed: int, thickness: float = 1000.0) -> np.ndarray:
    """`(k, 3)` xyz, Å, on both faces of a slab, on and beside the field, none upon another."""
    rng = np.random.default_rng(seed)
    places: list[np.ndarray] = []
    while len(places) < 2 * count:
        place = rng.uniform(-0.5, 0.5, 3) * [1.8 * SIDE * PIXEL, 1.1 * SIDE * PIXEL, 0]
        place[2] = rng.choice([-0.5, 0.5]) * thickness
        if all(np.linalg.norm(place[:2] - other[:2]) > 250 for other in places):
            places.append(place)
    return np.array(places)


def bend_beads(beads: np.ndarray, truth: TiltSeries, view: int, size: float) -> np.ndarray:
    """Beads at x, y rise by `size` times (x / 1500 Å)² times the share of the exposure that came before the view."""
    share = truth.pre_exposure_e_per_a2[view] / truth.pre_exposure_e_per_a2.max()
    return beads + np.array([0, 0, size]) * ((beads[:, :1] / 1500) ** 2).clip(max=2) * share


def make_bent_series(size: float, seed: int = 0, count: int = 30) -> SmallSeries:
    """A series whose specimen bends by `size` Å while it is exposed."""
    scheme = make_scheme(seed)
    beads, truth = place_beads(count, seed), scheme.truth
    views = []
    for view in range(len(truth)):
        balls = np.column_stack([bend_beads(beads, truth, view, size), np.full(len(beads), BEAD / 2)])
        specimen = BallSpecimen(balls, gold_free_paths(len(balls)), thickness_angstrom=1000.0)
        views.append(draw_ball_series(specimen, truth.take([view]), seed=1000 * seed + view)[0])
    return SmallSeries(scheme, np.stack(views), beads)


def make_series(seed: int = 0, count: int = 14, blank: tuple[int, ...] = (), **errors) -> SmallSeries:
    scheme = make_scheme(seed, **errors)
    beads = place_beads(count, seed)
    balls = np.column_stack([beads, np.full(len(beads), BEAD / 2)])
    specimen = BallSpecimen(balls, gold_free_paths(len(balls)), thickness_angstrom=1000.0)
    return SmallSeries(scheme, draw_ball_series(specimen, scheme.truth, seed=seed, blank=blank), beads)


def to_geometry(series: TiltSeries) -> ViewGeometry:
    """The record in pixels, its magnification one of scale, stretch and symmetric shear."""
    m = np.asarray(series.magnification)
    scale = (m[:, 0, 0] + m[:, 1, 1]) / 2
    shift = np.stack([series.x_shift_angstrom, series.y_shift_angstrom], axis=1) / series.pixel_size_angstrom
    return ViewGeometry(
        tilt_deg=np.array(series.y_tilt_deg),
        axis_deg=np.array(series.z_rot_deg),
        shift_px=shift,
        x_tilt_deg=np.array(series.x_tilt_deg),
        scale=scale,
        stretch=m[:, 0, 0] / scale - 1,
        skew=m[:, 0, 1] / scale,
    )
