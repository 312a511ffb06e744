"""What an alignment leaves behind: the aligned record, tables, IMOD's files, the stack, pictures."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from verglas.model import LocalField, Particles, TiltSeries

if TYPE_CHECKING:
    from verglas.algo.tilt_alignment.alignment import MarkAlignment

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


@dataclass(frozen=True, eq=False)
class Marks:
    """What a series was aligned by.

    Parameters
    ----------
    kind
        "beads" or "patches".
    size_px
        Diameter of the beads, side of the patches, in pixels of the block averages.
    """

    kind: str
    size_px: float


_SIZE_LABELS = {"beads": "vglDiameterAngst", "patches": "vglSizeAngst"}

CAPTIONS = {
    "tracks": "beads (rings) or patches (squares) that were measured, and those that were not (dotted)",
    "residuals": "residual of every bead or patch over the tilt; a jump is a view that moved or was not followed",
    "field": "mean residual of each, 40 times as long, and in grey what a local field took off, if there is one; "
    "arrows that neighbours share are the specimen's motion",
    "places": "beads or patches in space, from above and both sides; the slab is level when they lie along x and y",
    "geometry": "the geometry that was found",
}


def apply_alignment(series: TiltSeries, alignment: "MarkAlignment", views: BinnedViews) -> TiltSeries:
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
    local, size = None, views.factor * series.pixel_size_angstrom
    if (field := alignment.field) is not None:
        flat = field.shifts_px.reshape(len(geometry), -1).T
        local = LocalField(
            (field.low_px[0] * size, field.low_px[1] * size),
            (field.high_px[0] * size, field.high_px[1] * size),
            np.stack([fill(column) for column in flat], axis=1).reshape(-1, *field.shifts_px.shape[1:])
            * size,
        )
    return replace(
        series,
        x_tilt_deg=fill(geometry.x_tilt_deg),
        y_tilt_deg=series.nominal_tilt_deg + fill(geometry.tilt_deg - series.nominal_tilt_deg[views.good]),
        z_rot_deg=fill(np.rad2deg(np.unwrap(np.deg2rad(geometry.axis_deg)))),
        x_shift_angstrom=fill(shifts[:, 0]),
        y_shift_angstrom=fill(shifts[:, 1]),
        magnification=np.moveaxis(np.array(magnification), 2, 0),
        selected=selected,
        local=local,
    )


def write_alignment(
    aligned: TiltSeries,
    alignment: "MarkAlignment",
    views: BinnedViews,
    marks: Marks,
    folder: Path,
) -> tuple[str, ...]:
    """Write the beads or patches in space, and IMOD's files with those in the views as a model."""
    from verglas.io.imod import tilt_series_to_imod, write_imod_folder
    from verglas.io.imod_model import make_imod_model, write_imod_model
    from verglas.io.relion_particles import write_particles

    name, pixel = aligned.name, aligned.pixel_size_angstrom
    table = f"{marks.kind}/{name}.star"
    write_particles(folder / table, _list_marks(aligned, alignment, views.factor, marks))
    imod = folder / "imod" / name
    written = write_imod_folder(imod, name, tilt_series_to_imod(aligned))
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
    radius = round(marks.size_px * views.factor / 2)
    written.append(imod / f"{name}.fid")
    write_imod_model(
        written[-1], make_imod_model(contours, size, pixel_size_angstrom=pixel, radius_px=radius)
    )
    return (table, *(f"imod/{name}/{path.name}" for path in sorted(written)))


def _list_marks(aligned: TiltSeries, alignment: "MarkAlignment", factor: int, marks: Marks) -> Particles:
    """List beads or patches as particles, with how often and how well each was measured."""
    import pandas as pd

    pixel = factor * aligned.pixel_size_angstrom
    seen = np.isfinite(alignment.residuals_px[..., 0])
    squares = np.where(seen, (alignment.residuals_px**2).sum(axis=-1), 0.0).sum(axis=1)
    known = np.flatnonzero(np.isfinite(alignment.points_px).all(axis=1))
    extra = pd.DataFrame(
        {
            _SIZE_LABELS[marks.kind]: np.full(len(seen), marks.size_px * pixel),
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


def _find_local_shifts(alignment: "MarkAlignment") -> FloatArray | None:
    """`(beads, n, 2)` shifts of the local field; none when there is no field."""
    import torch

    from verglas.ops.local_field import evaluate_field

    field = alignment.field
    if field is None:
        return None
    places = torch.from_numpy(alignment.points_px[:, :2])
    shifts = [
        evaluate_field(torch.from_numpy(nodes), field.low_px, field.high_px, places)
        for nodes in field.shifts_px
    ]
    return np.asarray(torch.stack(shifts, dim=1).numpy())


def draw_alignment(
    aligned: TiltSeries,
    alignment: "MarkAlignment",
    views: BinnedViews,
    marks: Marks,
    folder: Path,
) -> tuple[str, ...]:
    """Draw the pictures of `CAPTIONS` and return their paths relative to the folder."""
    from verglas.algo.tilt_alignment.geometry import project_points
    from verglas.figures.alignment import draw_places, draw_residual_field, draw_residuals, draw_tracks
    from verglas.figures.tilt_series import draw_geometry

    paths = {kind: f"figures/{aligned.name}_{kind}.png" for kind in CAPTIONS}
    tilts, pixel = aligned.nominal_tilt_deg[views.good], views.factor * aligned.pixel_size_angstrom
    draw_residuals(tilts, alignment.residuals_px * views.factor, folder / paths["residuals"])
    expected = project_points(alignment.geometry, alignment.points_px)
    shape = views.images[0].shape
    draw_residual_field(
        tilts,
        expected,
        alignment.residuals_px,
        (shape[0], shape[1]),
        folder / paths["field"],
        _find_local_shifts(alignment),
    )
    draw_places(alignment.points_px * pixel, folder / paths["places"])
    kept = np.flatnonzero(~alignment.lost)
    ends = [kept[tilts[kept].argmin()], kept[np.abs(tilts[kept]).argmin()], kept[tilts[kept].argmax()]]
    measured = np.isfinite(alignment.tracks_px[..., 0])
    draw_tracks(
        [views.images[views.good[view]] for view in ends],
        [f"{round(tilts[view], 1) + 0.0:+.1f}°" for view in ends],
        [(alignment.tracks_px[measured[:, v], v], expected[~measured[:, v], v]) for v in ends],
        marks.size_px,
        pixel,
        folder / paths["tracks"],
        square=marks.kind == "patches",
    )
    draw_geometry(aligned, folder / paths["geometry"])
    return tuple(paths.values())
