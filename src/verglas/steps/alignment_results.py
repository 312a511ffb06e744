"""What an alignment by beads leaves behind: the aligned record, tables, IMOD's files, the stack, pictures."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from verglas.model import Particles, TiltSeries

if TYPE_CHECKING:
    from verglas.algo.tilt_alignment.bead_alignment import BeadAlignment

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class BinnedViews:
    """Views of a series, averaged in blocks.

    Parameters
    ----------
    images
        All views `(y, x)`.
    factor
        Side of a block.
    faults
        What is wrong with each, "" when nothing is.
    good
        Rows of those that are selected and have no fault.
    """

    images: list[Image]
    factor: int
    faults: tuple[str, ...]
    good: npt.NDArray[np.intp]


CAPTIONS = {
    "beads": "beads that were measured (rings) and those that were expected but not measured (dotted)",
    "residuals": "residual of every bead over the tilt; a jump is a view that moved or was not followed",
    "field": "mean residual of each bead, 40 times as long; arrows that neighbours share are the specimen's motion",
    "places": "the beads in space, from above and from both sides; the slab is level when they lie along x and y",
    "geometry": "the geometry that was found",
}


def apply_alignment(series: TiltSeries, alignment: "BeadAlignment", views: BinnedViews) -> TiltSeries:
    """Return the aligned series. Views left out get what lies between their neighbours."""
    from verglas.ops.binning import binned_centre_step

    geometry, kept = alignment.geometry, ~alignment.lost
    rows = views.good[kept]
    order = np.argsort(series.nominal_tilt_deg[rows], kind="stable")

    def fill(values: FloatArray) -> FloatArray:
        at = series.nominal_tilt_deg[rows][order]
        whole = np.interp(series.nominal_tilt_deg, at, values[kept][order])
        whole[rows] = values[kept]
        return whole

    step = [binned_centre_step(size, views.factor) for size in series.image_shape[::-1]]
    shifts = (geometry.shift_px * views.factor + step) * series.pixel_size_angstrom
    magnification = [[fill(geometry.magnification[:, i, j]) for j in range(2)] for i in range(2)]
    selected = np.zeros(len(series), bool)
    selected[rows] = True
    return replace(
        series,
        x_tilt_deg=fill(geometry.x_tilt_deg),
        y_tilt_deg=series.nominal_tilt_deg + fill(geometry.tilt_deg - series.nominal_tilt_deg[views.good]),
        z_rot_deg=fill(np.rad2deg(np.unwrap(np.deg2rad(geometry.axis_deg)))),
        x_shift_angstrom=fill(shifts[:, 0]),
        y_shift_angstrom=fill(shifts[:, 1]),
        magnification=np.moveaxis(np.array(magnification), 2, 0),
        selected=selected,
    )


def write_alignment(
    aligned: TiltSeries,
    alignment: "BeadAlignment",
    views: BinnedViews,
    diameter_angstrom: float,
    folder: Path,
) -> tuple[str, ...]:
    """Write the beads in space, and IMOD's files with the beads in the views as a model."""
    from verglas.io.imod import tilt_series_to_imod, write_imod_folder
    from verglas.io.imod_model import make_imod_model, write_imod_model
    from verglas.io.relion_particles import write_particles

    name, pixel = aligned.name, aligned.pixel_size_angstrom
    write_particles(
        folder / f"beads/{name}.star", _list_beads(aligned, alignment, views.factor, diameter_angstrom)
    )
    imod = folder / "imod" / name
    write_imod_folder(imod, name, tilt_series_to_imod(aligned))
    contours = []
    centre = np.array([size // 2 for size in views.images[0].shape[::-1]])
    for track in alignment.tracks_px:
        seen = np.isfinite(track[:, 0])
        # IMOD's pixel i has its centre at i + 0.5, and its corner is the same whatever the binning.
        places = (track[seen] + centre + 0.5) * views.factor
        rows = views.good[seen]
        order = np.argsort(rows)
        contours.append(np.column_stack([places, rows])[order])
    size = (aligned.image_shape[1], aligned.image_shape[0], len(aligned))
    radius = round(diameter_angstrom / pixel / 2)
    write_imod_model(
        imod / f"{name}.fid", make_imod_model(contours, size, pixel_size_angstrom=pixel, radius_px=radius)
    )
    written = sorted(path.name for path in imod.iterdir() if path.is_file())
    return (f"beads/{name}.star", *(f"imod/{name}/{file}" for file in written))


def _list_beads(
    aligned: TiltSeries, alignment: "BeadAlignment", factor: int, diameter_angstrom: float
) -> Particles:
    """List the beads as particles, with how often and how well each was measured."""
    import pandas as pd

    pixel = factor * aligned.pixel_size_angstrom
    seen = np.isfinite(alignment.residuals_px[..., 0])
    squares = np.where(seen, (alignment.residuals_px**2).sum(axis=-1), 0.0).sum(axis=1)
    known = np.flatnonzero(np.isfinite(alignment.points_px).all(axis=1))
    extra = pd.DataFrame(
        {
            "vglDiameterAngst": np.full(len(seen), diameter_angstrom),
            "vglViews": seen.sum(axis=1),
            "vglResidualAngst": pixel * np.sqrt(squares / np.maximum(seen.sum(axis=1), 1)),
        }
    )
    return Particles(
        tomogram_names=np.full(len(known), aligned.name),
        positions_angstrom=alignment.points_px[known] * pixel,
        angles_deg=np.zeros((len(known), 3)),
        half_set=np.zeros(len(known), np.int64),
        score=np.full(len(known), np.nan),
        extra=extra.iloc[known].reset_index(drop=True),
    )


def draw_alignment(
    aligned: TiltSeries, alignment: "BeadAlignment", views: BinnedViews, diameter_px: float, folder: Path
) -> tuple[str, ...]:
    """Draw the pictures of `CAPTIONS` and return their paths relative to the folder."""
    from verglas.algo.tilt_alignment.geometry import project_points
    from verglas.figures.alignment import draw_beads, draw_places, draw_residual_field, draw_residuals
    from verglas.figures.tilt_series import draw_geometry

    paths = {kind: f"figures/{aligned.name}_{kind}.png" for kind in CAPTIONS}
    tilts, pixel = aligned.nominal_tilt_deg[views.good], views.factor * aligned.pixel_size_angstrom
    draw_residuals(tilts, alignment.residuals_px * views.factor, folder / paths["residuals"])
    expected = project_points(alignment.geometry, alignment.points_px)
    shape = views.images[0].shape
    draw_residual_field(
        tilts, expected, alignment.residuals_px, (shape[0], shape[1]), folder / paths["field"]
    )
    draw_places(alignment.points_px * pixel, folder / paths["places"])
    kept = np.flatnonzero(~alignment.lost)
    ends = [kept[tilts[kept].argmin()], kept[np.abs(tilts[kept]).argmin()], kept[tilts[kept].argmax()]]
    measured = np.isfinite(alignment.tracks_px[..., 0])
    draw_beads(
        [views.images[views.good[view]] for view in ends],
        [f"{round(tilts[view], 1) + 0.0:+.1f}°" for view in ends],
        [(alignment.tracks_px[measured[:, v], v], expected[~measured[:, v], v]) for v in ends],
        diameter_px,
        pixel,
        folder / paths["beads"],
    )
    draw_geometry(aligned, folder / paths["geometry"])
    return tuple(paths.values())
