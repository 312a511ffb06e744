"""How a tilt series is taken: what the microscope believes, and what really happened."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from verglas.algo.simulation.scatterers import FloatArray
from verglas.errors import UserError
from verglas.model import ImageReference, Optics, TiltSeries

Order = Literal["dose_symmetric", "bidirectional", "continuous"]


@dataclass(frozen=True)
class Misalignment:
    """By how much the stage and the lenses err; each is a standard deviation unless its name says otherwise.

    Parameters
    ----------
    shift_angstrom
        Of the specimen's centre in each view, along x and y.
    drift_angstrom
        Of each step of a random walk over the views in the order of acquisition, added to the shifts.
    tilt_deg
        Of each view's tilt angle.
    tilt_offset_deg
        Added to every tilt angle: the slab is not level. Not random.
    axis_error_deg
        Added to the nominal tilt-axis angle in every view. Not random.
    axis_deg
        Of the tilt-axis angle of each view.
    x_tilt_deg
        Tilt about x of every view. Not random.
    magnification_drift
        Relative change of magnification from the first view taken to the last. Not random.
    defocus_angstrom
        Of each view's defocus.
    astigmatism_angstrom
        u - v of every view. Not random.
    astigmatism_angle_deg
        Angle of the u axis. Not random.
    """

    shift_angstrom: float = 0.0
    drift_angstrom: float = 0.0
    tilt_deg: float = 0.0
    tilt_offset_deg: float = 0.0
    axis_error_deg: float = 0.0
    axis_deg: float = 0.0
    x_tilt_deg: float = 0.0
    magnification_drift: float = 0.0
    defocus_angstrom: float = 0.0
    astigmatism_angstrom: float = 0.0
    astigmatism_angle_deg: float = 0.0


@dataclass(frozen=True)
class TiltScheme:
    """The two records of one series, view by view the same.

    Parameters
    ----------
    nominal
        What the microscope knows: stage angles, nominal axis and defocus, no shifts.
    truth
        The geometry and defocus of the images.
    acquisition_order
        `(n,)` as a tuple: the place of each view in time, 0 first.
    """

    nominal: TiltSeries
    truth: TiltSeries
    acquisition_order: tuple[int, ...]


def make_tilt_scheme(
    name: str,
    optics: Optics,
    image_shape: tuple[int, int],
    *,
    max_tilt_deg: float = 60.0,
    step_deg: float = 3.0,
    start_deg: float = 0.0,
    order: Order = "dose_symmetric",
    exposure_e_per_a2: float = 3.0,
    defocus_angstrom: float = 30000.0,
    axis_angle_deg: float = 0.0,
    hand: int = 1,
    volume_shape: tuple[int, int, int] | None = None,
    misalignment: Misalignment | None = None,
    seed: int = 0,
) -> TiltScheme:
    """Plan a series from -max to max by equal steps through the start; the stack is sorted by tilt angle.

    Parameters
    ----------
    name
        Names the series; its views are sections of `<name>.mrc`.
    optics, image_shape
        Of the images.
    max_tilt_deg, step_deg, start_deg
        Range of tilts about the start.
    order
        "dose_symmetric" takes 0, +, -, -, +, + and so on; "bidirectional" goes up from the start, then down
        from it; "continuous" goes from the lowest to the highest.
    exposure_e_per_a2
        Of each view.
    defocus_angstrom
        Nominal defocus of every view.
    axis_angle_deg
        Nominal angle of the tilt axis, `z_rot_deg`.
    hand
        +1 when larger depth is larger defocus.
    volume_shape
        Kept in the records.
    misalignment
        How the truth differs; none is a perfect stage.
    seed
        Chooses the random part of it.

    Raises
    ------
    UserError
        When the range, the step or the order make no sense.
    """
    if not (0 < step_deg <= 90 and 0 <= max_tilt_deg < 90):
        raise UserError(
            f"a scheme needs a step above 0 and a range below 90 degrees; got {step_deg}, {max_tilt_deg}"
        )
    steps = math.floor(max_tilt_deg / step_deg + 1e-9)
    tilts = start_deg + step_deg * np.arange(-steps, steps + 1, dtype=np.float64)
    place = order_views(steps, order)
    nominal = TiltSeries(
        name=name,
        optics=optics,
        image_shape=image_shape,
        images=tuple(ImageReference(Path(f"{name}.mrc"), section) for section in range(len(tilts))),
        nominal_tilt_deg=tilts,
        z_rot_deg=np.full(len(tilts), axis_angle_deg),
        pre_exposure_e_per_a2=place * exposure_e_per_a2,
        exposure_e_per_a2=np.full(len(tilts), exposure_e_per_a2),
        defocus_u_angstrom=np.full(len(tilts), defocus_angstrom),
        defocus_v_angstrom=np.full(len(tilts), defocus_angstrom),
        hand=hand,
        volume_shape=volume_shape,
    )
    truth = _misalign(nominal, place, misalignment or Misalignment(), np.random.default_rng([seed, 4]))
    return TiltScheme(nominal, truth, tuple(int(i) for i in place))


def order_views(steps: int, order: Order) -> FloatArray:
    """Place in time of each of the 2 · steps + 1 views sorted by angle.

    Raises
    ------
    UserError
        When the order is none of the three.
    """
    if order == "dose_symmetric":
        # One at the start, then pairs of views on alternating sides: +1, -1, -2, +2, +3, -3 ...
        sequence = [0]
        for i in range(1, steps + 1):
            sequence += [i, -i] if i % 2 else [-i, i]
    elif order == "bidirectional":
        sequence = [*range(steps + 1), *range(-1, -steps - 1, -1)]
    elif order == "continuous":
        sequence = list(range(-steps, steps + 1))
    else:
        raise UserError(f"`order` must be dose_symmetric, bidirectional or continuous; got {order!r}")
    place = np.empty(2 * steps + 1)
    place[np.array(sequence) + steps] = np.arange(2 * steps + 1)
    return place


def _misalign(
    nominal: TiltSeries, place: FloatArray, errors: Misalignment, rng: np.random.Generator
) -> TiltSeries:
    count = len(nominal)
    walk = np.cumsum(rng.normal(0, errors.drift_angstrom, (count, 2)), axis=0)[place.astype(int)]
    shifts = rng.normal(0, errors.shift_angstrom, (count, 2)) + walk
    tilts = nominal.nominal_tilt_deg + errors.tilt_offset_deg + rng.normal(0, errors.tilt_deg, count)
    axis = nominal.z_rot_deg + errors.axis_error_deg + rng.normal(0, errors.axis_deg, count)
    scale = 1 + errors.magnification_drift * place / max(count - 1, 1)
    defocus = nominal.mean_defocus_angstrom + rng.normal(0, errors.defocus_angstrom, count)
    return replace(
        nominal,
        y_tilt_deg=tilts,
        x_tilt_deg=np.full(count, errors.x_tilt_deg),
        z_rot_deg=axis,
        x_shift_angstrom=shifts[:, 0],
        y_shift_angstrom=shifts[:, 1],
        magnification=scale[:, None, None] * np.eye(2),
        defocus_u_angstrom=defocus + errors.astigmatism_angstrom / 2,
        defocus_v_angstrom=defocus - errors.astigmatism_angstrom / 2,
        defocus_angle_deg=np.full(count, errors.astigmatism_angle_deg),
    )
