"""`fiducials`: gold beads found in tilt series, masked, and erased with matched noise.

What the job folder holds
-------------------------
=========================  =====================================================================================
`tilt_series.star`         the series, their images those of `stacks`
`stacks/<name>.mrc`        the views without their beads, float32
`masks/<name>.mrc`         1 where a view is masked, else 0 (int8)
`beads/<name>.star`        place of each bead in each view, in pixels from the first; beads in space, in Å
=========================  =====================================================================================
"""

import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from verglas.errors import UserError
from verglas.model import ImageReference, TiltSeries
from verglas.steps.series_results import PROCESS_BYTES, gather_warnings
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    from verglas.algo.fiducials.compare import SpectrumPairs

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]

TOLERANCE_DIAMETERS = 0.75
"""How far a bead may be from where the others views say that it is."""

_DRAWN_ZOOMS = 6


class FiducialsParams(Params):
    """Find gold beads in tilt series, mask them, and erase them with noise that matches what is around."""

    tilt_series: Annotated[Path, Field(description="`tilt_series.star` of the series, better aligned")]
    bead_diameter: Annotated[
        float | None, Field(gt=0, description="of the gold beads, in Å; estimated when not given")
    ] = None
    erase: Annotated[bool, Field(description="write the views without their beads")] = True


def list_items(params: FiducialsParams) -> list[Item]:
    """One item a tilt series."""
    from verglas.io.relion_tilt_series import read_tilt_series

    return [
        Item(name, series, tuple(dict.fromkeys(image.path for image in series.images)))
        for name, series in read_tilt_series(params.tilt_series).items()
    ]


def run_item(item: Item, params: FiducialsParams, context: Context) -> ItemResult:
    """Find, mask and erase the beads of one series, and draw it."""
    from verglas.io.relion_tilt_series import write_one_tilt_series

    series: TiltSeries = item.record
    found = find_series(series, params.bead_diameter, context.threads)
    erased = write_views(series, found, params, context)
    star, beads = f"tilt_series/{item.name}.star", f"beads/{item.name}.star"
    files = [star, beads, f"masks/{item.name}.mrc"]
    if params.erase:
        stack = f"stacks/{item.name}.mrc"
        files.append(stack)
        rows = iter(range(len(series)))
        series = series.map_images(lambda _: ImageReference(context.folder / stack, next(rows)))
    write_one_tilt_series(context.folder / star, series)
    _write_beads(context.folder / beads, series, found)
    figures = _draw(item.record, found, erased, context.folder) if params.erase else []
    return ItemResult((*files, *figures), _describe(series, found, erased), _warn(found, erased))


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


@dataclass(frozen=True, eq=False)
class ErasedViews:
    """What is told of the views that were written.

    Parameters
    ----------
    masked_share
        `(n,)` share of each view that is masked.
    pairs
        Spectra of filled discs and of their neighbours; none when nothing was filled or nothing is around.
    """

    masked_share: FloatArray
    pairs: "SpectrumPairs | None"


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
    matrices = _make_matrices(series)
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


def write_views(
    series: TiltSeries, beads: SeriesBeads, params: FiducialsParams, context: Context
) -> ErasedViews:
    """Write the masks of a series, and its views without their beads."""
    from verglas.algo.fiducials.compare import join_pairs
    from verglas.io.mrc import create_mrc

    shape, pixel = (len(series), *series.image_shape), series.pixel_size_angstrom
    shares, pairs = [], []
    with ExitStack() as stack:
        masks = stack.enter_context(
            create_mrc(
                context.folder / f"masks/{series.name}.mrc",
                shape,
                voxel_size_angstrom=pixel,
                dtype=np.int8,
                is_stack=True,
            )
        )
        views = (
            stack.enter_context(
                create_mrc(
                    context.folder / f"stacks/{series.name}.mrc",
                    shape,
                    voxel_size_angstrom=pixel,
                    is_stack=True,
                )
            )
            if params.erase
            else None
        )
        for view, masked, spectra in _erase_views(series, beads, params, context.threads):
            masks.write(masked.astype(np.int8))
            shares.append(float(masked.mean()))
            if views and spectra is not None:
                views.write(view)
                pairs.append(spectra)
    filled = join_pairs(pairs) if pairs else None
    return ErasedViews(np.array(shares), filled if filled is not None and len(filled.filled) else None)


def _erase_views(
    series: TiltSeries, beads: SeriesBeads, params: FiducialsParams, threads: int
) -> "Iterator[tuple[Image, npt.NDArray[np.bool_], SpectrumPairs | None]]":
    """Yield the views in order, what is masked in them, and the spectra of what was filled."""
    from verglas.algo.fiducials.compare import compare_spectra
    from verglas.algo.fiducials.erase import erase_discs, mask_discs

    def work(row: int) -> "tuple[Image, npt.NDArray[np.bool_], SpectrumPairs | None]":
        view, places = read_view(series, row), beads.positions_px[row]
        if not params.erase:
            return view, mask_discs(series.image_shape, places, beads.radius_px), None
        seed = zlib.crc32(f"{series.name}/{row}".encode())
        erased, masked = erase_discs(view, places, beads.radius_px, seed)
        return erased, masked, compare_spectra(erased, masked, places, beads.radius_px)

    with ThreadPoolExecutor(threads) as pool:
        # As many views at a time as there are threads, so that no more wait for the writer.
        for start in range(0, len(series), threads):
            yield from pool.map(work, range(start, min(start + threads, len(series))))


def _guess_diameter(series: TiltSeries) -> float:
    """Diameter of the beads from three of the five lowest tilts, pixels."""
    from verglas.algo.fiducials.find import estimate_diameter

    lowest = np.argsort(np.abs(np.asarray(series.y_tilt_deg)), kind="stable")[:5:2]
    return estimate_diameter([read_view(series, int(row)) for row in lowest])


def _make_matrices(series: TiltSeries) -> FloatArray:
    import torch

    from verglas.ops.geometry import projection_matrices

    names = ("x_tilt_deg", "y_tilt_deg", "z_rot_deg", "x_shift_angstrom", "y_shift_angstrom", "magnification")
    arguments = {name: torch.from_numpy(np.array(getattr(series, name))) for name in names}
    return np.asarray(projection_matrices(**arguments).numpy())


def _write_beads(path: Path, series: TiltSeries, beads: SeriesBeads) -> None:
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


def _describe(series: TiltSeries, beads: SeriesBeads, erased: ErasedViews) -> dict[str, Any]:
    from verglas.algo.fiducials.compare import deviation_of

    counts = [len(places) for places in beads.positions_px]
    located = sum(int((owners >= 0).sum()) for owners in beads.owners)
    pixel = series.pixel_size_angstrom
    values: dict[str, Any] = {
        "views": len(series),
        "beads_per_view": round(float(np.mean(counts)), 1),
        "beads": sum(counts),
        "points": len(beads.points_angstrom),
        "beads_of_points": located,
        "residual_angstrom": round(beads.residual_angstrom, 1),
        "diameter_angstrom": round(beads.diameter_px * pixel, 1),
        "erased_radius_angstrom": round(beads.radius_px * pixel, 1),
        "masked_percent": round(100 * float(erased.masked_share.mean()), 2),
        "spectrum_deviation_percent": None,
        "spectrum_error_percent": None,
    }
    if erased.pairs is not None:
        deviation, error = deviation_of(erased.pairs)
        worst = int(np.abs(deviation).argmax())
        values["spectrum_deviation_percent"] = round(100 * float(deviation[worst]), 1)
        values["spectrum_error_percent"] = round(100 * float(error[worst]), 1)
    return values


def _warn(beads: SeriesBeads, erased: ErasedViews) -> tuple[str, ...]:
    counts = [len(places) for places in beads.positions_px]
    if not sum(counts):
        return ("no beads were found",)
    if len(counts) > 4 and not len(beads.points_angstrom):
        return ("no bead was found in space: the series is not aligned, or what was found is not gold",)
    return ()


def _draw(series: TiltSeries, beads: SeriesBeads, erased: ErasedViews, folder: Path) -> list[str]:
    from verglas.algo.fiducials.compare import deviation_of
    from verglas.figures.fiducials import draw_erased, draw_fill_spectra, draw_zooms
    from verglas.io.mrc import read_image
    from verglas.steps.series_results import shrink

    paths = {kind: f"figures/{series.name}_{kind}.png" for kind in _CAPTIONS}
    tilts, pixel = np.asarray(series.y_tilt_deg), series.pixel_size_angstrom
    rows = list(dict.fromkeys([int(tilts.argmin()), int(np.abs(tilts).argmin()), int(tilts.argmax())]))
    labels = [f"{round(tilts[row], 1) + 0.0:+.1f}°" for row in rows]
    stack = folder / f"stacks/{series.name}.mrc"
    before = [read_view(series, row) for row in rows]
    after = [read_image(ImageReference(stack, row)) for row in rows]
    small = [shrink(view, pixel) for view in before]
    factor = round(small[0][1] / pixel)
    centre = np.array([n // 2 for n in series.image_shape[::-1]])
    draw_erased(
        [view for view, _ in small],
        [shrink(view, pixel)[0] for view in after],
        [((beads.positions_px[row] + centre + 0.5) / factor - 0.5) for row in rows],
        beads.radius_px / factor,
        labels,
        small[0][1],
        folder / paths["erased"],
    )
    drawn = ["erased"]
    reach = int(np.ceil(3 * beads.radius_px))
    squares = [
        (
            before[i][y - reach : y + reach, x - reach : x + reach],
            after[i][y - reach : y + reach, x - reach : x + reach],
        )
        for i, (x, y) in _choose_zooms(
            [beads.positions_px[row] + centre for row in rows], series.image_shape, reach
        )
    ]
    if squares:
        draw_zooms(squares, [""] * len(squares), pixel, folder / paths["zooms"])
        drawn.append("zooms")
    if erased.pairs is not None:
        pairs = erased.pairs
        deviation, error = deviation_of(pairs)
        means = pairs.filled.mean(axis=0), pairs.neighbours.mean(axis=0)
        draw_fill_spectra(pairs.frequencies, *means, deviation, error, pixel, folder / paths["spectra"])
        drawn.append("spectra")
    return [paths[kind] for kind in drawn]


def _choose_zooms(
    places: list[FloatArray], shape: tuple[int, int], reach: int
) -> list[tuple[int, tuple[int, int]]]:
    """Beads in turn from the views, whose surroundings lie within the image."""
    chosen: list[tuple[int, tuple[int, int]]] = []
    for rank in range(max((len(one) for one in places), default=0)):
        for view, one in enumerate(places):
            if rank < len(one):
                x, y = (int(value) for value in np.rint(one[rank]))
                if reach <= x < shape[1] - reach and reach <= y < shape[0] - reach:
                    chosen.append((view, (x, y)))
    return sorted(chosen[:_DRAWN_ZOOMS])


def summarise(results: dict[str, ItemResult], params: FiducialsParams, folder: Path) -> Summary:
    """Write `tilt_series.star` and gather the figures."""
    from verglas.io.relion_tilt_series import read_one_tilt_series, write_tilt_series_index

    stars = {name: folder / "tilt_series" / f"{name}.star" for name in results}
    write_tilt_series_index(
        folder / "tilt_series.star", [(read_one_tilt_series(star), star) for star in stars.values()]
    )
    figures = [
        Figure(path, f"{name}: {caption}")
        for name, result in results.items()
        for kind, caption in _CAPTIONS.items()
        if (path := f"figures/{name}_{kind}.png") in result.outputs
    ]
    found = [result.values for result in results.values()]
    deviations = [value["spectrum_deviation_percent"] for value in found]
    known = [value for value in deviations if value is not None]
    values = {
        "tilt series": Value(len(results), "", "that were searched"),
        "beads": Value(
            round(float(np.mean([one["beads_per_view"] for one in found])), 1), "a view", "mean of all"
        ),
        "in space": Value(
            round(float(np.mean([one["points"] for one in found])), 1),
            "beads a series",
            "seen from several views",
        ),
        "diameter": Value(
            round(float(np.median([one["diameter_angstrom"] for one in found])), 1), "Å", "of a bead"
        ),
        "masked": Value(
            round(float(np.mean([one["masked_percent"] for one in found])), 2), "%", "of all pixels"
        ),
    }
    if known:
        values["spectrum"] = Value(
            max(known, key=abs), "%", "largest deviation of the filled discs' power from that beside them"
        )
    return Summary(figures, values, gather_warnings(results), ["tilt_series.star"])


def estimate(items: list[Item], params: FiducialsParams) -> Estimate:
    """From the size of the views, by times measured on one core."""
    most, disk, seconds = 0, 0, 0.0
    for item in items:
        pixels = int(np.prod(item.record.image_shape))
        most = max(most, 40 * pixels)
        disk += len(item.record) * pixels * (5 if params.erase else 1)
        seconds += 3 + len(item.record) * pixels * 4e-7
    return Estimate(PROCESS_BYTES + most, disk, seconds)


_CAPTIONS = {
    "erased": "views at both ends and in the middle of the tilt range, before and after; rings are what was erased",
    "zooms": "some beads before and after; no halo and no edge should be left",
    "spectra": "power in the filled discs and in discs beside them; the band is 5 %",
}

FIDUCIALS_STEP = Step(
    name="fiducials",
    params=FiducialsParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
