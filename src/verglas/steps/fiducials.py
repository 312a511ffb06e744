"""`fiducials`: gold beads found in tilt series and micrographs, masked, and erased with matched noise.

What the job folder holds
-------------------------
=========================  =====================================================================================
`tilt_series.star`         the series, their images those of `stacks`
`micrographs.star`         the same of micrographs that came in such a table
`stacks/<name>.mrc`        the views without their beads, float32
`masks/<name>.mrc`         1 where a view is masked, else 0 (int8)
`beads/<name>.star`        place of each bead in each view, in pixels from the first; beads in space, in Å
=========================  =====================================================================================
"""

import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from verglas.model import ImageReference, TiltSeries
from verglas.steps.series_beads import SeriesBeads, find_series, read_view, write_beads
from verglas.steps.series_results import PROCESS_BYTES, gather_warnings
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    from verglas.algo.fiducials.compare import SpectrumPairs
    from verglas.algo.fiducials.network import MaskNet
    from verglas.io.mrc import MrcWriter

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]

WEIGHTS = "fiducials"
"""Name of the weights that come with verglas: those that `fiducials train` writes with its defaults."""

# Those of verglas.algo.fiducials.network, which loads torch.
_KINDS = ("gold", "contamination", "carbon", "bar")
_DOUBTED = 0.2
_DRAWN_ZOOMS = 6


class FiducialsParams(Params):
    """Find gold beads in tilt series or micrographs, mask them, and erase them with noise that matches."""

    images: Annotated[
        tuple[Path, ...],
        Field(
            min_length=1,
            description="`tilt_series.star`, better aligned; or micrographs: `micrographs.star`, or MRC files",
        ),
    ]
    bead_diameter: Annotated[
        float | None, Field(gt=0, description="of the gold beads, in Å; estimated when not given")
    ] = None
    erase: Annotated[bool, Field(description="write the views without their beads")] = True
    network: Annotated[
        bool,
        Field(
            description="mask also what the network takes for gold, thick contamination, carbon and grid bars"
        ),
    ] = True
    weights: Annotated[
        Path | None,
        Field(
            description="of the network, from `fiducials train`; those that come with verglas when not given"
        ),
    ] = None


def list_items(params: FiducialsParams) -> list[Item]:
    """One item a tilt series, or a micrograph, which is a series of one view."""
    from verglas.io.relion_micrographs import is_micrographs_star, read_micrograph, read_micrographs
    from verglas.io.relion_tilt_series import read_tilt_series

    found: list[TiltSeries] = []
    for path in params.images:
        if path.suffix != ".star":
            found.append(read_micrograph(path))
        else:
            read = read_micrographs if is_micrographs_star(path) else read_tilt_series
            found += read(path).values()
    return [Item(one.name, one, tuple(dict.fromkeys(image.path for image in one.images))) for one in found]


def run_item(item: Item, params: FiducialsParams, context: Context) -> ItemResult:
    """Find, mask and erase the beads of one series, and draw it."""
    from verglas.io.relion_tilt_series import write_one_tilt_series

    series: TiltSeries = item.record
    found = find_series(series, params.bead_diameter, context.threads)
    written = write_views(series, found, params, context)
    beads = f"beads/{item.name}.star"
    files = [beads, f"masks/{item.name}.mrc"]
    if params.erase:
        stack = f"stacks/{item.name}.mrc"
        files.append(stack)
        rows = iter(range(len(series)))
        series = series.map_images(lambda _: ImageReference(context.folder / stack, next(rows)))
    if len(series) > 1:
        files.append(f"tilt_series/{item.name}.star")
        write_one_tilt_series(context.folder / files[-1], series)
    write_beads(context.folder / beads, series, found)
    figures = _draw(item.record, found, written, params, context.folder)
    return ItemResult((*files, *figures), _describe(series, found, written), _warn(found, written))


@dataclass(frozen=True, eq=False)
class WrittenViews:
    """What is told of the views that were written.

    Parameters
    ----------
    masked_share
        `(n,)` share of each view that is masked.
    kind_shares
        `(n, kinds)` share of each view that the network takes for each kind; none without it.
    gold_chance
        Median over all beads of the probability of gold that the network gives their middles; NaN without it.
    pairs
        Spectra of filled discs and of their neighbours; none when nothing was filled or nothing is around.
    """

    masked_share: FloatArray
    kind_shares: FloatArray | None
    gold_chance: float
    pairs: "SpectrumPairs | None"


@dataclass(frozen=True, eq=False)
class _View:
    """A view that was worked on."""

    image: Image
    masked: npt.NDArray[np.bool_]
    pairs: "SpectrumPairs | None"
    kind_shares: FloatArray | None
    gold_chances: FloatArray


def write_views(
    series: TiltSeries, beads: SeriesBeads, params: FiducialsParams, context: Context
) -> WrittenViews:
    """Write the masks of a series, and its views without their beads."""
    from verglas.algo.fiducials.compare import join_pairs
    from verglas.io.mrc import create_mrc

    shape, pixel = (len(series), *series.image_shape), series.pixel_size_angstrom
    done: list[_View] = []
    with ExitStack() as stack:

        def create(folder: str, dtype: npt.DTypeLike) -> "MrcWriter":
            path = context.folder / folder / f"{series.name}.mrc"
            return stack.enter_context(
                create_mrc(path, shape, voxel_size_angstrom=pixel, dtype=dtype, is_stack=True)
            )

        masks = create("masks", np.int8)
        views = create("stacks", np.float32) if params.erase else None
        for view in _work_on_views(series, beads, params, context):
            masks.write(view.masked.astype(np.int8))
            if views:
                views.write(view.image)
            done.append(replace(view, image=_NO_IMAGE, masked=view.masked.mean(keepdims=True)))
    pairs = [view.pairs for view in done if view.pairs is not None]
    joined = join_pairs(pairs) if pairs else None
    kinds = [view.kind_shares for view in done if view.kind_shares is not None]
    chances = np.concatenate([view.gold_chances for view in done])
    return WrittenViews(
        np.array([float(view.masked.item()) for view in done]),
        np.array(kinds) if kinds else None,
        float(np.median(chances)) if len(chances) else float("nan"),
        joined if joined is not None and len(joined.filled) else None,
    )


_NO_IMAGE = np.zeros((0, 0), np.float32)


def _work_on_views(
    series: TiltSeries, beads: SeriesBeads, params: FiducialsParams, context: Context
) -> Iterator[_View]:
    """Yield the views in order: erased, masked, and judged."""
    from verglas.algo.fiducials.compare import compare_spectra
    from verglas.algo.fiducials.erase import erase_discs, mask_discs

    network = _load_network(params, context.device) if params.network else None

    def work(row: int) -> _View:
        view, places = read_view(series, row), beads.positions_px[row]
        if params.erase:
            seed = zlib.crc32(f"{series.name}/{row}".encode())
            erased, masked = erase_discs(view, places, beads.radius_px, seed)
            pairs = compare_spectra(erased, masked, places, beads.radius_px)
        else:
            erased, masked, pairs = view, mask_discs(series.image_shape, places, beads.radius_px), None
        if network is None:
            return _View(erased, masked, pairs, None, np.empty(0))
        classes, chances = _segment(network, view, places, series.pixel_size_angstrom)
        shares = np.array([(classes == kind).mean() for kind in range(1, len(_KINDS) + 1)])
        return _View(erased, masked | (classes > 0), pairs, shares, chances)

    with ThreadPoolExecutor(context.threads) as pool:
        # As many views at a time as there are threads, so that no more wait for the writer.
        for start in range(0, len(series), context.threads):
            yield from pool.map(work, range(start, min(start + context.threads, len(series))))


def _load_network(params: FiducialsParams, device: str) -> "MaskNet":
    from verglas.algo.fiducials.network import make_network
    from verglas.io.network_weights import read_shipped_weights, read_weights
    from verglas.runtime import choose_device

    weights = read_weights(params.weights) if params.weights else read_shipped_weights(WEIGHTS)
    return make_network(weights).to(choose_device(device))


def _segment(
    network: "MaskNet", view: Image, places: FloatArray, pixel: float
) -> tuple[npt.NDArray[np.uint8], FloatArray]:
    """Class of each pixel, 0 where the specimen is likelier than all kinds, and the chance of gold at each bead."""
    from verglas.algo.fiducials.network import segment_view

    chances = segment_view(network, view, pixel)
    classes = np.where(chances.sum(axis=0) > 0.5, chances.argmax(axis=0) + 1, 0).astype(np.uint8)
    index = np.rint(places[:, ::-1] + [n // 2 for n in view.shape]).astype(int)
    y, x = (index[:, axis].clip(0, view.shape[axis] - 1) for axis in (0, 1))
    return classes, chances[0, y, x].astype(float)


def _describe(series: TiltSeries, beads: SeriesBeads, written: WrittenViews) -> dict[str, Any]:
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
        "masked_percent": round(100 * float(written.masked_share.mean()), 2),
        "spectrum_deviation_percent": None,
        "spectrum_error_percent": None,
    }
    if written.pairs is not None:
        deviation, error = deviation_of(written.pairs)
        worst = int(np.abs(deviation).argmax())
        values["spectrum_deviation_percent"] = round(100 * float(deviation[worst]), 1)
        values["spectrum_error_percent"] = round(100 * float(error[worst]), 1)
    if written.kind_shares is not None:
        values["gold_chance"] = round(written.gold_chance, 3)
        for kind, share in zip(_KINDS, written.kind_shares.mean(axis=0), strict=True):
            values[f"{kind}_percent"] = round(100 * float(share), 2)
    return values


def _warn(beads: SeriesBeads, written: WrittenViews) -> tuple[str, ...]:
    counts = [len(places) for places in beads.positions_px]
    if not sum(counts):
        return ("no beads were found",)
    if len(counts) > 4 and not len(beads.points_angstrom):
        return ("no bead was found in space: the series is not aligned, or what was found is not gold",)
    if written.gold_chance < _DOUBTED:
        return (
            f"the network takes what was erased for no gold (chance {written.gold_chance:.2f}): look at the figures",
        )
    return ()


def _draw(
    series: TiltSeries, beads: SeriesBeads, written: WrittenViews, params: FiducialsParams, folder: Path
) -> list[str]:
    """Draw views at both ends and in the middle of the tilt range, some beads, and the spectra."""
    paths = {kind: f"figures/{series.name}_{kind}.png" for kind in _CAPTIONS}
    tilts = np.asarray(series.y_tilt_deg)
    rows = list(dict.fromkeys([int(tilts.argmin()), int(np.abs(tilts).argmin()), int(tilts.argmax())]))
    drawn = []
    if params.erase:
        drawn += _draw_erased(series, beads, rows, folder, paths)
    if params.network:
        _draw_masks(series, rows, params, folder / paths["masks"])
        drawn.append("masks")
    if written.pairs is not None:
        _draw_spectra(series, written.pairs, folder / paths["spectra"])
        drawn.append("spectra")
    return [paths[kind] for kind in drawn]


def _draw_spectra(series: TiltSeries, pairs: "SpectrumPairs", path: Path) -> None:
    from verglas.algo.fiducials.compare import deviation_of
    from verglas.figures.fiducials import draw_fill_spectra

    means = pairs.filled.mean(axis=0), pairs.neighbours.mean(axis=0)
    draw_fill_spectra(pairs.frequencies, *means, *deviation_of(pairs), series.pixel_size_angstrom, path)


def _draw_masks(series: TiltSeries, rows: list[int], params: FiducialsParams, path: Path) -> None:
    from verglas.figures.masks import draw_masks
    from verglas.steps.series_results import shrink

    network, pixel = _load_network(params, "cpu"), series.pixel_size_angstrom
    views, classes = [], []
    for row in rows:
        view = read_view(series, row)
        small, side = shrink(view, pixel)
        found, _ = _segment(network, view, np.empty((0, 2)), pixel)
        factor = round(side / pixel)
        views.append(small)
        classes.append(found[: small.shape[0] * factor : factor, : small.shape[1] * factor : factor])
    draw_masks(views, classes, _KINDS, _label(series, rows), side, path)


def _label(series: TiltSeries, rows: list[int]) -> list[str]:
    # Adding 0 takes the sign off a zero.
    return [f"{round(np.asarray(series.y_tilt_deg)[row], 1) + 0.0:+.1f}°" for row in rows]


def _draw_erased(
    series: TiltSeries, beads: SeriesBeads, rows: list[int], folder: Path, paths: dict[str, str]
) -> list[str]:
    from verglas.figures.fiducials import draw_erased, draw_zooms
    from verglas.io.mrc import read_image
    from verglas.steps.series_results import shrink

    pixel = series.pixel_size_angstrom
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
        _label(series, rows),
        small[0][1],
        folder / paths["erased"],
    )
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
    if not squares:
        return ["erased"]
    draw_zooms(squares, pixel, folder / paths["zooms"])
    return ["erased", "zooms"]


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
    """Write `tilt_series.star` or `micrographs.star` and gather the figures."""
    tables = _write_tables(results, params, folder)
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
        "searched": Value(len(results), "", "tilt series or micrographs"),
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
    return Summary(figures, values, gather_warnings(results), tables)


def _write_tables(results: dict[str, ItemResult], params: FiducialsParams, folder: Path) -> list[str]:
    from verglas.io.relion_micrographs import is_micrographs_star, write_micrographs
    from verglas.io.relion_tilt_series import read_one_tilt_series, write_tilt_series_index

    tables = []
    stars = [
        folder / star for name, one in results.items() if (star := f"tilt_series/{name}.star") in one.outputs
    ]
    if stars:
        write_tilt_series_index(
            folder / "tilt_series.star", [(read_one_tilt_series(star), star) for star in stars]
        )
        tables.append("tilt_series.star")
    sources = [path for path in params.images if path.suffix == ".star" and is_micrographs_star(path)]
    erased = {
        name: folder / path for name, one in results.items() if (path := f"stacks/{name}.mrc") in one.outputs
    }
    if sources and erased:
        write_micrographs(folder / "micrographs.star", sources[0], erased)
        tables.append("micrographs.star")
    return tables


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
    "masks": "what the network takes for gold, contamination, carbon and grid bars",
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
