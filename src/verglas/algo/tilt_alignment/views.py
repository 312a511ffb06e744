"""Views that show no specimen: dark, blank, or blocked by a grid bar."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

DARKEST = 0.7
"""A view is dark below this fraction of what the law of transmission says for its tilt."""

SCATTER = 6.0
"""... and only when it is this many standard deviations of the other views away."""

FLATTEST = 0.2
"""A view is blank when its contrast is below this fraction of the median contrast."""

_MOST_OFFSET_DEG = 20
_GREATEST_TILT_DEG = 80.0
_FEWEST_FOR_LAW = 5
_FEWEST_FOR_OFFSET = 9


@dataclass(frozen=True, eq=False)
class ViewCheck:
    """What became of the views of one series.

    Parameters
    ----------
    faults
        `(n,)` "dark", "blank", or "" for a good view.
    expected_mean
        `(n,)` mean intensity that the law says, in the unit of the images; NaN where it does not apply.
    tilt_offset_deg
        Tilt at which the specimen is level: that of a lamella; 0 where it was not fitted.
    thickness_ratio
        Thickness over the mean free path, as far as the exposure was the same for all views; NaN where it was
        not fitted.
    """

    faults: tuple[str, ...]
    expected_mean: FloatArray
    tilt_offset_deg: float = 0.0
    thickness_ratio: float = np.nan

    @property
    def bad(self) -> npt.NDArray[np.bool_]:
        """`(n,)` whether a view has a fault."""
        return np.array([bool(fault) for fault in self.faults])


def find_bad_views(means: npt.ArrayLike, deviations: npt.ArrayLike, tilt_deg: npt.ArrayLike) -> ViewCheck:
    """Find dark, blank and blocked views by their mean intensity and contrast.

    A specimen of thickness t and mean free path L, level at the tilt a0, transmits exp(-t / (L cos(a - a0))),
    so the logarithm of the mean is a line over 1 / cos(a - a0). The line is fitted for every a0 up to 20
    degrees by the median of slopes (Theil and Sen), and that a0 is taken whose residuals, cut at the
    threshold, are least on average; so neither the bad views nor a few at one end of the range move it. A view
    is **dark** when it has less than 0.7 of the mean that the line says, and lies 6 standard deviations (from
    the median of the residuals) below it: half of it hidden by a grid bar is enough. It is **blank** when its
    standard deviation is below 0.2 of the median of all. Brighter views are never faulted.

    The real series EMPIAR-10499 00254 follows the law to 2.3 % at every view. Of a series of 41
    views, six at one end that a grid bar hides more and more are found; of eight and more sometimes none is.

    The law does not apply to images whose mean was taken off: when a quarter of the means are not positive, or
    their median is below a tenth of that of the standard deviations (counts of 0.01 electrons a pixel); nor to
    fewer than five views. Then contrast alone decides.

    Parameters
    ----------
    means, deviations
        `(n,)` mean and standard deviation of each view, in the unit of the images.
    tilt_deg
        `(n,)` tilt of each view.

    Raises
    ------
    ValueError
        When the three are not equally long and finite.
    """
    columns = [np.asarray(column, dtype=float) for column in (means, deviations, tilt_deg)]
    mean, deviation, tilt = columns
    if any(column.shape != (len(mean),) or not np.isfinite(column).all() for column in columns):
        raise ValueError(
            "`means`, `deviations` and `tilt_deg` must be finite and equally long; got shapes "
            f"{[column.shape for column in columns]}"
        )
    blank = deviation < max(FLATTEST * float(np.median(deviation)), np.finfo(float).tiny)
    usable = mean > 0
    has_mean = usable.mean() > 0.75 and np.median(mean) > 0.1 * np.median(deviation)
    if usable.sum() < _FEWEST_FOR_LAW or not has_mean:
        return ViewCheck(_name_faults(blank, np.zeros_like(blank)), np.full(len(mean), np.nan))
    offset, slope, intercept = _fit_law(np.log(mean[usable]), tilt[usable])
    expected = slope * _path(tilt, offset) + intercept
    residual = np.full(len(mean), -np.inf)
    residual[usable] = np.log(mean[usable]) - expected[usable]
    scatter = 1.4826 * float(np.median(np.abs(residual[usable])))
    dark = residual < -max(-np.log(DARKEST), SCATTER * scatter)
    return ViewCheck(_name_faults(blank, dark), np.exp(expected), offset, -slope)


def _name_faults(blank: npt.NDArray[np.bool_], dark: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(np.where(dark, "dark", np.where(blank, "blank", "")).tolist())


def _path(tilt_deg: FloatArray, offset_deg: float) -> FloatArray:
    """Way through the specimen in units of its thickness."""
    angle = np.clip(tilt_deg - offset_deg, -_GREATEST_TILT_DEG, _GREATEST_TILT_DEG)
    return np.asarray(1.0 / np.cos(np.deg2rad(angle)))


def _fit_law(logarithms: FloatArray, tilt_deg: FloatArray) -> tuple[float, float, float]:
    """Offset of the tilt, slope and intercept; the smallest offset of those that fit equally well."""
    most = _MOST_OFFSET_DEG if len(tilt_deg) >= _FEWEST_FOR_OFFSET else 0
    cut = -np.log(DARKEST)
    best, least = (0.0, 0.0, 0.0), np.inf
    for offset in sorted(range(-most, most + 1), key=abs):
        path = _path(tilt_deg, offset)
        slope, intercept = _fit_line(path, logarithms)
        loss = float(np.minimum(np.abs(logarithms - slope * path - intercept), cut).mean())
        if loss < least * (1 - 1e-6):
            best, least = (float(offset), slope, intercept), loss
    return best


def _fit_line(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    """Slope and intercept that almost a third of the points cannot move (Theil 1950; Sen 1968)."""
    first, second = np.triu_indices(len(x), 1)
    step = x[second] - x[first]
    apart = np.abs(step) > 1e-6
    if not apart.any():
        return 0.0, float(np.median(y))
    slope = float(np.median((y[second] - y[first])[apart] / step[apart]))
    return slope, float(np.median(y - slope * x))
