"""A small series without beads: grains in a slab, drawn by direct sums."""

from dataclasses import dataclass

import numpy as np

from verglas.algo.simulation.balls import BallSpecimen, draw_ball_series
from verglas.algo.simulation.scatterers import Scatterers
from verglas.algo.simulation.tilt_scheme import Misalignment, make_tilt_scheme
from verglas.algo.tilt_alignment.geometry import ViewGeometry, start_geometry
from verglas.model import Optics

PIXEL = 10.0


@dataclass(frozen=True, eq=False)
class PatchSeries:
    views: np.ndarray
    nominal_tilt_deg: np.ndarray
    truth: ViewGeometry
    points_px: np.ndarray
    axis_deg: float


def make_patch_series(
    side: int = 192, thickness: float = 1000.0, *, seed: int = 1, step_deg: float = 4.0, exact: bool = False
) -> PatchSeries:
    rng = np.random.default_rng(seed)
    errors = Misalignment(shift_angstrom=40.0, drift_angstrom=20.0, tilt_deg=0.1, axis_error_deg=2.0)
    scheme = make_tilt_scheme(
        "TS",
        Optics(PIXEL),
        (side, side),
        step_deg=step_deg,
        axis_angle_deg=80.0,
        misalignment=Misalignment() if exact else errors,
        seed=seed,
    )
    field = side * PIXEL
    extent = np.array([2.6 * field, 1.5 * field, thickness])
    count = int(extent.prod() / 1.2e7)
    places = rng.uniform(-0.5, 0.5, (count, 3)) * extent
    grains = Scatterers(places, 2e6 * rng.uniform(0.3, 1.5, count), rng.uniform(25.0, 50.0, count))
    views = draw_ball_series(
        BallSpecimen(np.empty((0, 4)), np.empty(0), grains, thickness), scheme.truth, seed=seed
    )
    truth = scheme.truth
    shifts = np.stack([truth.x_shift_angstrom, truth.y_shift_angstrom], axis=1) / PIXEL
    inside = (np.abs(places[:, :2]) < 0.35 * field).all(axis=1)
    geometry = start_geometry(truth.y_tilt_deg, truth.z_rot_deg, shifts)
    return PatchSeries(views, truth.nominal_tilt_deg, geometry, places[inside] / PIXEL, 80.0)
