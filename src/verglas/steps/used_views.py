"""The views of a series that a reconstruction uses."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from verglas.errors import UserError
from verglas.model import TiltSeries

if TYPE_CHECKING:
    from verglas.steps.reconstruct import ReconstructParams


def select_views(series: TiltSeries, params: "ReconstructParams") -> TiltSeries:
    """Keep the selected views, in the order of their tilts.

    Raises
    ------
    UserError
        When there are too few, or one of them cannot be used.
    """
    from verglas.ops.backprojection import MAX_TILT_DEG

    used = series.take(series.selected) if series.selected.any() else None
    if used is None or len(used) < 1 + params.halves:
        need = "at least two for `halves`" if params.halves else "at least one"
        raise UserError(
            f"{len(used) if used else 0} of the {len(series)} views of {series.name!r} are selected; "
            f"expected {need}"
        )
    # Taken in order of tilt, every other view is half of the views at any angle.
    used = used.take(np.argsort(np.asarray(used.y_tilt_deg), kind="stable"))
    tilts = np.abs(np.asarray(used.y_tilt_deg))
    steepest = int(tilts.argmax())
    if tilts[steepest] > MAX_TILT_DEG:
        raise UserError(
            f"{_name_view(used, steepest)} is too steep to be back-projected; expected at most "
            f"{MAX_TILT_DEG:g}°, or that it is not selected"
        )
    unknown = np.flatnonzero(~np.isfinite(used.mean_defocus_angstrom))
    if params.ctf != "none" and len(unknown):
        raise UserError(
            f"{_name_view(used, unknown[0])} has no defocus; expected one for `ctf` {params.ctf!r}"
        )
    return used


def read_views(series: TiltSeries) -> Iterator[npt.NDArray[np.float32]]:
    """Read the views `(y, x)`, one after the other.

    Raises
    ------
    UserError
        When one cannot be read, is of another size than the record says, or holds values that are not finite.
    """
    from verglas.io.mrc import check_finite, read_image

    for row, image in enumerate(series.images):
        view = check_finite(read_image(image), _name_view(series, row))
        if view.shape != series.image_shape:
            raise UserError(
                f"{_name_view(series, row)} has (y, x) = {view.shape}; expected {series.image_shape}, as its "
                "record says"
            )
        yield view


def _name_view(series: TiltSeries, row: int) -> str:
    image, tilt = series.images[row], np.asarray(series.y_tilt_deg)[row]
    place = (
        f"{image.path.name}" if image.section is None else f"section {image.section + 1} of {image.path.name}"
    )
    return f"the view of {series.name!r} at {round(tilt, 1) + 0.0:+.1f}° ({place})"
