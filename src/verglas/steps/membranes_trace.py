"""`membranes trace`: membranes traced in whole micrographs, such as vesicles, and taken out of them.

What the job folder holds
-------------------------
=====================================  ==================================================================
`subtracted/<name>_subtracted.mrc`     the micrographs without membranes, at their own grey scale
`micrographs.star`                     the list that came in, or one of our own, with the new images
`models/<name>.json`                   curves, profiles and strengths of the membranes of each micrograph
=====================================  ==================================================================
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from verglas.errors import UserError
from verglas.files import check_exists, write_text
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    from verglas.algo.membranes.vesicles import Vesicle
    from verglas.io.relion_micrographs import ListedMicrograph

_DRAWN_PIXELS = 512
_MOST_FIGURES = 24


class MembranesTraceParams(Params):
    """Trace membranes in whole micrographs, fit those that cross or touch together, and take them out."""

    micrographs: Annotated[
        Path, Field(description="`micrographs.star`, a folder of MRC files, or one; dense is dark")
    ]
    masks: Annotated[
        Path | None,
        Field(
            description="folder with an MRC mask of each micrograph's name, above 0 on membranes; found where none"
        ),
    ] = None
    distance: Annotated[float, Field(ge=20, le=80, description="Å between the leaflets")] = 36.0
    bright: Annotated[bool, Field(description="dense is bright in the micrographs")] = False
    pixel_size: Annotated[
        float | None, Field(gt=0, description="Å where neither list nor header says it")
    ] = None


def list_items(params: MembranesTraceParams) -> list[Item]:
    """One item a micrograph."""
    from verglas.io.relion_micrographs import list_micrographs

    items = []
    for one in list_micrographs(params.micrographs):
        inputs: tuple[Path, ...] = (one.path,)
        if params.masks is not None:
            inputs = (one.path, check_exists(params.masks / f"{one.path.stem}.mrc", "mask"))
        items.append(Item(one.path.stem, one, inputs))
    return items


def run_item(item: Item, params: MembranesTraceParams, context: Context) -> ItemResult:
    """Trace the membranes of one micrograph and take them out."""
    from verglas.algo.membranes.tracing import trace_membranes
    from verglas.algo.membranes.vesicles import fit_vesicles
    from verglas.io.mrc import check_finite, read_image, read_mrc, write_mrc
    from verglas.io.relion_micrographs import read_micrograph

    listed: ListedMicrograph = item.record
    series = read_micrograph(listed.path, params.pixel_size or listed.pixel_size_angstrom)
    image = check_finite(read_image(series.images[0]), f"micrograph {str(listed.path)!r}").astype(np.float64)
    mask = None
    if params.masks is not None:
        mask = read_mrc(params.masks / f"{item.name}.mrc")[0]
        if mask.shape != image.shape:
            raise UserError(
                f"the mask of micrograph {item.name!r} has (y, x) = {mask.shape}; expected {image.shape}"
            )
    pixel = series.pixel_size_angstrom
    dense = image if params.bright else -image
    traces = trace_membranes(dense, pixel, mask=mask, distance_angstrom=params.distance)
    found, removed = fit_vesicles(image, traces, params.distance / pixel)
    result = (image - removed).astype(np.float32)
    name = f"subtracted/{item.name}_subtracted.mrc"
    outputs = (name, f"models/{item.name}.json", f"figures/{item.name}.png")
    write_mrc(context.folder / name, result, voxel_size_angstrom=pixel)
    write_text(
        context.folder / outputs[1], json.dumps({"pixel_size_angstrom": pixel, "membranes": _tell(found)})
    )
    _draw(image, result, found, pixel, context.folder / outputs[2])
    values = {
        "membranes": len(found),
        "closed": sum(one.closed for one in found),
        "length_angstrom": float(sum(len(one.path) for one in found) * pixel),
        "removed_rms": float(np.sqrt(np.mean(removed**2))),
        "pixel_size_angstrom": pixel,
    }
    warnings = () if found else (f"micrograph {item.name!r} shows no membrane",)
    return ItemResult(outputs, values, warnings)


def _tell(found: "list[Vesicle]") -> list[dict[str, Any]]:
    return [
        {
            "closed": one.closed,
            "path_yx_px": np.round(one.path, 3).tolist(),
            "profile": one.profile.coefficients.tolist(),
            "profile_spacing_px": one.profile.spacing,
            "strength_against_normal": one.near.tolist(),
            "strength_along_normal": one.far.tolist(),
        }
        for one in found
    ]


def _draw(
    before: npt.NDArray[np.float64],
    after: npt.NDArray[np.float32],
    found: "list[Vesicle]",
    pixel: float,
    path: Path,
) -> None:
    import torch

    from verglas.figures.membranes import draw_traced
    from verglas.ops.binning import bin_images

    factor = max(1, max(before.shape) // _DRAWN_PIXELS)
    small = [
        bin_images(torch.from_numpy(np.ascontiguousarray(one, dtype=np.float32)), factor).numpy()
        for one in (before, after)
    ]
    curves = [(one.path - (factor - 1) / 2) / factor for one in found]
    draw_traced((small[0], small[1]), curves, pixel * factor, path)


def summarise(results: dict[str, ItemResult], params: MembranesTraceParams, folder: Path) -> Summary:
    """Write the list of the new micrographs."""
    from verglas.io.relion_micrographs import tabulate_micrographs, write_micrographs
    from verglas.model import Optics
    from verglas.steps.series_results import gather_warnings

    images = {name: folder / f"subtracted/{name}_subtracted.mrc" for name in results}
    if params.micrographs.suffix == ".star":
        write_micrographs(folder / "micrographs.star", params.micrographs, images)
    else:
        optics = {
            images[name]: Optics(round(one.values["pixel_size_angstrom"], 6)) for name, one in results.items()
        }
        tabulate_micrographs(folder / "micrographs.star", optics)
    count = sum(one.values["membranes"] for one in results.values())
    length = sum(one.values["length_angstrom"] for one in results.values())
    values = {
        "micrographs": Value(len(results), "", "in subtracted/"),
        "membranes": Value(
            count, "", f"{sum(one.values['closed'] for one in results.values())} of them closed"
        ),
        "length": Value(round(length / 1e4, 2), "µm", "of all membranes"),
    }
    figures = [
        Figure(f"figures/{name}.png", f"{name}: before, curves, after; curves must lie on membranes")
        for name in list(results)[:_MOST_FIGURES]
    ]
    return Summary(figures, values, gather_warnings(results), ["micrographs.star"])


def estimate(items: list[Item], params: MembranesTraceParams) -> Estimate:
    """From the sizes of the micrographs, by times measured on one core."""
    from verglas.io.mrc_header import read_mrc_header

    pixels = [
        float(np.prod(read_mrc_header(check_exists(item.record.path, "micrograph")).shape)) for item in items
    ]
    return Estimate((400 << 20) + int(80 * max(pixels)), int(4.2 * sum(pixels)), 1e-5 * sum(pixels))


MEMBRANES_TRACE_STEP = Step(
    "membranes trace", MembranesTraceParams, list_items, run_item, summarise, estimate
)
"""Membranes traced in micrographs."""
