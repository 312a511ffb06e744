"""Beads of a whole series: found view by view, located in space, and looked for again where they were missed."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from verglas.errors import UserError
from verglas.model import TiltSeries

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]

TOLERANCE_DIAMETERS = 0.75
"""How far a bead may be from where the others views say that it is."""


@dataclass(frozen=True, eq=False)
class SeriesBeads:
    """Beads of a series; all lengths in pixels of its views.

    Parameters
    ----------
    positions_px
        For each view, `(k, 2)` xy from the centre `n // 2`.
    owners
        For each view, `(k,)` number of the bead in space, -1 for none.
    points_angstrom
        `(beads, 3)` beads in space.
    residual_angstrom
        RMS distance of what was found from the projections of the beads in space.
    diameter_px
        Of the beads.
    radius_px
        Of what they change, their fringes included.
    """

    positions_px: tuple[FloatArray, ...]
    owners: tuple[npt.NDArray[np.intp], ...]
    points_angstrom: FloatArray
    residual_angstrom: float
    diameter_px: float
    radius_px: float


def find_series(series: TiltSeries, diameter_angstrom: float | None, threads: int) -> SeriesBeads:
    """Find the beads of a series in its views, in space, and then in the views in which they were missed.

    Parameters
    ----------
    series
        With its geometry; without a right one beads are found view by view.
    diameter_angstrom
        Of the beads; estimated when none.
    threads
        Views at the same time.
    """
    from verglas.algo.fiducials.halo import choose_radius, measure_halos
    from verglas.algo.fiducials.locate import locate_beads, project_beads
    from verglas.algo.fiducials.search import find_in_view, recover_beads
    from verglas.ops.geometry import series_matrices

    pixel = series.pixel_size_angstrom
    diameter = diameter_angstrom / pixel if diameter_angstrom else _guess_diameter(series)
    tolerance = TOLERANCE_DIAMETERS * diameter

    def find(row: int) -> tuple[FloatArray, FloatArray]:
        view = read_view(series, row)
        places = find_in_view(view, diameter).positions_px
        return places, measure_halos(view, places, diameter / 2)

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(find, range(len(series))))
    positions = [places for places, _ in found]
    radius = choose_radius([halos for _, halos in found], diameter / 2)
    matrices = series_matrices(series.geometry).numpy()
    reach = np.array(series.image_shape[::-1]) / 2 * pixel
    beads = locate_beads([places * pixel for places in positions], matrices, tolerance * pixel, reach)
    expected = project_beads(beads.points_angstrom, matrices) / pixel

    def recover(row: int) -> tuple[FloatArray, npt.NDArray[np.intp]]:
        missed = np.setdiff1d(np.arange(len(beads.points_angstrom)), beads.owners[row])
        near = (np.abs(expected[row][missed]) <= reach / pixel + radius).all(axis=1)
        missed = missed[near]
        if not len(missed):
            return positions[row], beads.owners[row]
        places, seen = recover_beads(read_view(series, row), expected[row][missed], diameter, tolerance)
        apart = np.linalg.norm(places[:, None] - positions[row], axis=2).min(axis=1, initial=np.inf)
        seen &= apart > diameter / 2  # else another bead's
        return np.concatenate([positions[row], places[seen]]), np.concatenate(
            [beads.owners[row], missed[seen]]
        )

    with ThreadPoolExecutor(threads) as pool:
        together = list(pool.map(recover, range(len(series))))
    return SeriesBeads(
        tuple(places for places, _ in together),
        tuple(owners for _, owners in together),
        beads.points_angstrom,
        beads.residual_angstrom,
        diameter,
        radius,
    )


def read_view(series: TiltSeries, row: int) -> Image:
    """Read one view.

    Raises
    ------
    UserError
        When it has another shape than the series, or holds values that are not finite.
    """
    from verglas.io.mrc import check_finite, read_image

    image = series.images[row]
    view: Image = check_finite(read_image(image), f"view {row + 1} in {str(image.path)!r}")
    if view.shape != series.image_shape:
        raise UserError(
            f"view {row + 1} of {series.name!r} has shape {view.shape}; expected {series.image_shape}"
        )
    return view


def _guess_diameter(series: TiltSeries) -> float:
    """Diameter of the beads from three of the five lowest tilts, pixels."""
    from verglas.algo.fiducials.find import estimate_diameter

    lowest = np.argsort(np.abs(np.asarray(series.y_tilt_deg)), kind="stable")[:5:2]
    return estimate_diameter([read_view(series, int(row)) for row in lowest])


def write_beads(path: Path, series: TiltSeries, beads: SeriesBeads) -> None:
    """Write the place of each bead in each view, in pixels from the first, and of the beads in space, in Å."""
    import pandas as pd

    from verglas.io.star import write_star

    centre = np.array([n // 2 for n in series.image_shape[::-1]])
    places = np.concatenate(beads.positions_px) + centre
    found = pd.DataFrame(
        {
            "vglView": np.repeat(np.arange(1, len(series) + 1), [len(one) for one in beads.positions_px]),
            "vglBead": np.concatenate(beads.owners) + 1,
            "rlnCoordinateX": places[:, 0].round(2),
            "rlnCoordinateY": places[:, 1].round(2),
        }
    )
    points = {
        f"rlnCenteredCoordinate{axis}Angst": beads.points_angstrom[:, i].round(1)
        for i, axis in enumerate("XYZ")
    }
    write_star(path, {"points": pd.DataFrame(points), "beads": found})
