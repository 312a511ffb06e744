"""Which exposure a view had, and how much came before it."""

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from verglas.errors import UserError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MATCH_DEG = 1.5
"""How far the tilt angles of the same view may differ between two tables, apart from a common offset."""


def order_dose_symmetric(tilt_deg: npt.ArrayLike) -> IntArray:
    """Return the place of each view in a dose-symmetric scheme, 0 for the first.

    From the lowest tilt outward (Hagen, Wan & Briggs, *J. Struct. Biol.* 197, 191, 2017). Of two views at the
    same tilt on either side, to half a degree, the positive one is the first.

    Parameters
    ----------
    tilt_deg
        `(n,)` stage angles.
    """
    tilt = np.asarray(tilt_deg, dtype=float)
    sorted_views = np.lexsort((tilt < 0, np.round(2 * np.abs(tilt))))
    order = np.empty(len(tilt), np.int64)
    order[sorted_views] = np.arange(len(tilt))
    return order


def accumulate_exposures(order: npt.ArrayLike, exposure_e_per_a2: npt.ArrayLike) -> FloatArray:
    """Return `(n,)` the exposure before each view.

    Parameters
    ----------
    order
        `(n,)` place of each view in the order of recording.
    exposure_e_per_a2
        `(n,)` exposure of each view.
    """
    sorted_views = np.argsort(order)
    exposure = np.asarray(exposure_e_per_a2, dtype=float)[sorted_views]
    before = np.empty(len(exposure))
    before[sorted_views] = np.cumsum(exposure) - exposure
    return before


def infer_exposures(pre_exposure_e_per_a2: npt.ArrayLike) -> FloatArray:
    """Return `(n,)` the exposure of each view from those before them; that of the last is the median's.

    All are NaN when two views have the same exposure before them, or there is only one view.
    """
    before = np.asarray(pre_exposure_e_per_a2, dtype=float)
    sorted_views = np.argsort(before, kind="stable")
    steps = np.diff(before[sorted_views])
    exposure = np.full(len(before), np.nan)
    if len(steps) and (steps > 0).all():
        exposure[sorted_views] = [*steps, np.median(steps)]
    return exposure


def match_views(tilt_deg: npt.ArrayLike, recorded_deg: npt.ArrayLike) -> IntArray:
    """Return for each view which of the recorded ones it is, by the tilt angles.

    As many views as recorded ones are matched in the order of their angles, so that angles refined since
    may differ by an offset; fewer are matched so that the sum of the differences is least.

    Parameters
    ----------
    tilt_deg
        `(n,)` angles of the views.
    recorded_deg
        `(m,)` angles of the recorded views.

    Raises
    ------
    UserError
        When there are more views than recorded ones, or an angle fits to none.
    """
    tilt, recorded = np.asarray(tilt_deg, dtype=float), np.asarray(recorded_deg, dtype=float)
    if len(tilt) > len(recorded):
        raise UserError(f"there are {len(tilt)} views, but only {len(recorded)} were recorded")
    match = np.empty(len(tilt), np.int64)
    if len(tilt) == len(recorded):
        match[np.argsort(tilt, kind="stable")] = np.argsort(recorded, kind="stable")
        offset = float(np.median(tilt - recorded[match]))
    else:
        match[:] = linear_sum_assignment(np.abs(tilt[:, None] - recorded))[1]
        offset = 0.0
    differences = np.abs(tilt - recorded[match] - offset)
    worst = int(differences.argmax())
    if differences[worst] > MATCH_DEG:
        raise UserError(
            f"the view at {tilt[worst]:g} degrees fits to none of the recorded angles; the nearest left is "
            f"{recorded[match[worst]]:g}, expected one within {MATCH_DEG:g} degrees"
        )
    return match
