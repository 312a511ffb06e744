"""`membranes analyze`: the membranes of 2-D class averages.

What the job folder holds
-------------------------
=======================  ==========================================================================
`membranes.star`         a row a membrane, with MemXTerminator's columns
`membranes.mrcs`         the membranes alone, a section a row
`masks.mrcs`             where they are
`kappa_templates.mrcs`   on request: the best membrane bent from one side to the other
=======================  ==========================================================================
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from verglas.errors import UserError
from verglas.files import check_exists
from verglas.model.membrane import MembraneRecord
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    from verglas.algo.membranes.analysis import Membrane

FloatImage = npt.NDArray[np.float32]

_KAPPA_LIMIT_ANGSTROM = 0.003
"""Strongest curvature of the templates, 1/Å: a circle of 330 Å radius."""
_MOST_FIGURES = 60


class MembranesAnalyzeParams(Params):
    """Find the membranes of 2-D class averages: their curves, the distance and the widths of their leaflets."""

    averages: Annotated[Path, Field(description="MRC stack of class averages; section N is class N")]
    shape: Annotated[
        Literal["auto", "arc", "bezier"],
        Field(description="curves looked for; `auto` takes a Bézier curve where an arc does not follow"),
    ] = "auto"
    most: Annotated[int, Field(ge=1, le=6, description="membranes looked for in an average")] = 3
    classes: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], Field(description="numbers of the averages, from 1; all")
    ] = ()
    pixel_size: Annotated[
        float | None, Field(gt=0, description="Å of the averages where their header does not say it")
    ] = None
    kappa_templates: Annotated[
        int,
        Field(ge=0, le=400, description="templates of the best membrane bent from side to side, to pick by"),
    ] = 0


def list_items(params: MembranesAnalyzeParams) -> list[Item]:
    """One item an average."""
    from verglas.io.mrc_header import read_mrc_header

    header = read_mrc_header(check_exists(params.averages, "class averages"))
    pixel = params.pixel_size or header.pixel_size_angstrom
    if not pixel:
        raise UserError(
            f"the header of {str(params.averages)!r} does not say the pixel size; expected `pixel_size`"
        )
    wrong = [one for one in params.classes if one > header.shape[0]]
    if wrong:
        raise UserError(f"{str(params.averages)!r} holds {header.shape[0]} averages; got class {wrong[0]}")
    chosen = params.classes or range(1, header.shape[0] + 1)
    return [
        Item(f"class_{number:05d}", (number, pixel), (params.averages,)) for number in sorted(set(chosen))
    ]


def run_item(item: Item, params: MembranesAnalyzeParams, context: Context) -> ItemResult:
    """Find the membranes of one average and draw them."""
    from verglas.algo.membranes.analysis import analyze_average
    from verglas.io.arrays import write_arrays
    from verglas.io.mrc import check_finite, read_image
    from verglas.model import ImageReference

    number, pixel = item.record
    image = read_image(ImageReference(params.averages, number - 1))
    check_finite(image, f"class average {number}")
    shape = (image.shape[0], image.shape[1])
    found = analyze_average(image, pixel, shape=params.shape, most=params.most) if image.std() > 0 else []
    records = [_record(one, number, pixel, shape, params) for one in found]
    scale = float(image.std())
    arrays = {
        "membranes": np.array([one.render(shape) * scale for one in found], np.float32).reshape(-1, *shape),
        "masks": np.array([one.mask(shape) for one in found], np.float32).reshape(-1, *shape),
        "profiles": np.array([_sample(one) for one in found]),
    }
    outputs = [f"parts/{item.name}.npz", f"figures/{item.name}.png"]
    write_arrays(context.folder / outputs[0], arrays)
    _draw(image, found, pixel, context.folder / outputs[1])
    warnings = () if found else (f"class average {number} shows no membrane that can be followed",)
    return ItemResult(tuple(outputs), {"membranes": [asdict(one) for one in records]}, warnings)


def _record(
    one: "Membrane", number: int, pixel: float, shape: tuple[int, int], params: MembranesAnalyzeParams
) -> MembraneRecord:
    from verglas.io.relion_tilt_series import project_path

    arc, leaflets, control = one.shape.arc, one.leaflets, one.shape.control_yx
    return MembraneRecord(
        number,
        project_path(params.averages),
        arc.centre_yx,
        arc.theta_deg,
        arc.kappa,
        leaflets.distance,
        leaflets.sigma1,
        leaflets.sigma2,
        one.quality,
        pixel,
        shape[0],
        None if control is None else tuple((float(y), float(x)) for y, x in control),
    )


def _sample(one: "Membrane") -> npt.NDArray[np.float64]:
    reach = np.linspace(-1.5, 1.5, 121) * one.leaflets.distance
    return one.profile.evaluate(reach)


def _draw(image: FloatImage, found: "list[Membrane]", pixel: float, path: Path) -> None:
    from verglas.algo.membranes.curves import path_normals
    from verglas.figures.membranes import draw_overlay

    curves, profiles = [], []
    for one in found:
        middle = one.shape.trace(min(image.shape) / 2)
        normals = path_normals(middle, closed=False) * one.leaflets.distance / 2
        curves.append((middle, middle - normals, middle + normals))
        reach = np.arange(-1.5, 1.5, 0.02) * one.leaflets.distance
        profiles.append((reach * pixel, one.shape.profile.evaluate(reach), one.profile.evaluate(reach)))
    best = found[0] if found else None
    title = f"{best.leaflets.distance * pixel:.1f} Å, quality {best.quality:.2f}" if best else "no membrane"
    draw_overlay(image, pixel, curves, profiles, path, title=title)


def summarise(results: dict[str, ItemResult], params: MembranesAnalyzeParams, folder: Path) -> Summary:
    """Write the table and the stacks."""
    from verglas.io.arrays import read_arrays
    from verglas.io.membranes import write_membranes
    from verglas.io.mrc import write_mrc
    from verglas.io.relion_tilt_series import project_path
    from verglas.steps.series_results import gather_warnings

    records = [_restore(one) for result in results.values() for one in result.values["membranes"]]
    if not records:
        raise UserError(f"no average of {str(params.averages)!r} shows a membrane that can be followed")
    parts = [read_arrays(folder / f"parts/{name}.npz", "membranes") for name in results]
    pixel = float(records[0].pixel_size_angstrom or 1.0)
    for name in ("membranes", "masks"):
        stack = np.concatenate([part[name] for part in parts])
        write_mrc(folder / f"{name}.mrcs", stack, voxel_size_angstrom=pixel, is_stack=True)
    images = {
        "rlnAveragedMembraneName": project_path(folder / "membranes.mrcs"),
        "rlnMembraneMaskName": project_path(folder / "masks.mrcs"),
    }
    write_membranes(folder / "membranes.star", records, images)
    if params.kappa_templates:
        profiles = np.concatenate([part["profiles"] for part in parts if len(part["membranes"])])
        _write_templates(folder, records, profiles, params.kappa_templates)
    quality = [one.quality for one in records]
    distance = [one.distance * pixel for one in records]
    values = {
        "membranes": Value(len(records), "", f"in {len(results)} averages"),
        "leaflet distance": Value(round(float(np.median(distance)), 2), "Å", "the median"),
        "quality": Value(
            round(float(np.median(quality)), 3), "", "correlation with curve and profile; the median"
        ),
    }
    figures = [
        Figure(f"figures/{name}.png", f"{name}: the curve must lie between the leaflets")
        for name in list(results)[:_MOST_FIGURES]
    ]
    return Summary(figures, values, gather_warnings(results), ["membranes.star"])


def _restore(values: dict[str, Any]) -> MembraneRecord:
    control = values["control_yx"]
    points = None if control is None else tuple((float(y), float(x)) for y, x in control)
    centre = values["centre_yx"]
    return MembraneRecord(**{**values, "centre_yx": (centre[0], centre[1]), "control_yx": points})


def _write_templates(
    folder: Path, records: list[MembraneRecord], profiles: npt.NDArray[Any], count: int
) -> None:
    """Bend the best membrane about the middle of the box, along the y axis, its inside on one side."""
    from verglas.algo.membranes.analysis import grid_points
    from verglas.algo.membranes.curves import Arc
    from verglas.algo.membranes.radon import soft_window
    from verglas.io.mrc import write_mrc

    best = max(range(len(records)), key=lambda row: records[row].quality)
    one = records[best]
    size, pixel = int(one.size or 0), float(one.pixel_size_angstrom or 1.0)
    points, reach = grid_points((size, size)), np.linspace(-1.5, 1.5, 121) * one.distance
    window = soft_window((size, size), 0.9 * size / 2)
    limit = _KAPPA_LIMIT_ANGSTROM * pixel
    stack = []
    for kappa in np.linspace(-limit, limit, count):
        distance, _ = Arc((size // 2, size // 2), 0.0, float(kappa)).locate(points)
        # The profile keeps its inner side on the inside of the bend.
        side = 1.0 if (kappa >= 0) == (one.kappa >= 0) else -1.0
        grey = np.interp(side * distance, reach, profiles[best], left=0.0, right=0.0)
        stack.append(grey.reshape(size, size) * window)
    write_mrc(
        folder / "kappa_templates.mrcs",
        np.array(stack, np.float32),
        voxel_size_angstrom=pixel,
        is_stack=True,
    )


def estimate(items: list[Item], params: MembranesAnalyzeParams) -> Estimate:
    """From the size of the averages, by times measured on one core."""
    from verglas.io.mrc_header import read_mrc_header

    pixels = float(np.prod(read_mrc_header(params.averages).shape[1:]))
    return Estimate(300 << 20, int(len(items) * (8 * pixels + 100_000)), len(items) * (1.0 + 2e-4 * pixels))


MEMBRANES_ANALYZE_STEP = Step(
    "membranes analyze", MembranesAnalyzeParams, list_items, run_item, summarise, estimate
)
"""Membranes of class averages."""
