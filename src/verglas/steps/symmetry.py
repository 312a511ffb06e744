"""`symmetry`: maps averaged over a point group, whose axes are found where they are not known."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from verglas.steps.map_results import (
    draw_maps,
    estimate_maps,
    list_maps,
    read_volume,
    tell_figures,
    write_volume,
)
from verglas.steps.step import Context, Estimate, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    import torch


class SymmetryParams(Params):
    """Average maps over a point group, about axes that lie as RELION has them or that are found."""

    maps: Annotated[tuple[Path, ...], Field(min_length=1, description="MRC volumes")]
    group: Annotated[str, Field(description="C2, C3 ..., D2, D3 ..., T, O, I, I1 to I4")]
    find_axis: Annotated[
        bool, Field(description="find the axes first and move the map so that they lie as the group's")
    ] = False


def list_items(params: SymmetryParams) -> list[Item]:
    """One item a map."""
    from verglas.ops.symmetry import symmetry_matrices

    symmetry_matrices(params.group)
    return list_maps(params.maps)


def run_item(item: Item, params: SymmetryParams, context: Context) -> ItemResult:
    """Symmetrise one map."""
    import torch

    from verglas.ops.symmetry import symmetrise_volume

    values, voxel = read_volume(item.record, 1.0)[0], read_voxel(item.record)
    volume = torch.from_numpy(values)
    found: dict[str, Any] = {}
    outputs = []
    if params.find_axis:
        volume, found = _find(volume, voxel, params.group)
        outputs.append(write_volume(context, f"maps/{item.name}_aligned.mrc", volume.numpy(), voxel))
    result = symmetrise_volume(volume, params.group, order="cubic")
    outputs.insert(0, write_volume(context, f"maps/{item.name}.mrc", result.numpy(), voxel))
    drawn = [("map", values), ("symmetrised", result.numpy())]
    if params.find_axis:
        drawn.insert(1, ("turned to its axes", volume.numpy()))
    outputs.append(draw_maps(context, f"figures/{item.name}.png", drawn, voxel))
    kept = float(np.corrcoef(volume.numpy().ravel(), result.numpy().ravel())[0, 1])
    return ItemResult(tuple(outputs), {**found, "correlation_with_average": kept})


def read_voxel(path: Path) -> float:
    """Voxel size of a map in Å; 1 where its header tells none, as symmetry does not depend on it."""
    from verglas.io.mrc import read_mrc_header

    return float(read_mrc_header(path).pixel_size_angstrom or 1.0)


def _find(volume: "torch.Tensor", voxel: float, group: str) -> tuple["torch.Tensor", dict[str, Any]]:
    from verglas.ops.rotation import matrices_to_euler
    from verglas.ops.symmetry_search import find_symmetry_frame, move_to_frame

    frame = find_symmetry_frame(volume, group)
    angles = matrices_to_euler(frame.rotation)
    found = {
        "rot_tilt_psi_deg": [round(value, 3) for value in angles.tolist()],
        "axis": [round(value, 5) for value in frame.rotation[2].tolist()],
        "centre_angstrom": [round(value * voxel, 3) for value in frame.centre_voxels.tolist()],
        "correlation": round(frame.correlation, 4),
    }
    return move_to_frame(volume, frame), found


def summarise(results: dict[str, ItemResult], params: SymmetryParams, folder: Path) -> Summary:
    """Gather the figures."""
    kept = [result.values["correlation_with_average"] for result in results.values()]
    values = {
        "maps": Value(len(results), "", f"averaged over {params.group}, in maps/"),
        "agreement": Value(
            round(float(np.median(kept)), 3), "", "correlation of the map with its average, the median"
        ),
    }
    if params.find_axis:
        found = [result.values["correlation"] for result in results.values()]
        values["symmetry"] = Value(
            round(float(np.median(found)), 3),
            "",
            "correlation of a map with itself turned, the median",
        )
    warnings = [
        f"{name}: turned by the group the map correlates with itself by only {value:.2f}; has it this symmetry?"
        for name, result in results.items()
        if (value := result.values.get("correlation", 1.0)) < 0.5
    ]
    return Summary(
        tell_figures(list(results), "central sections, across and along the axis"), values, warnings
    )


def estimate(items: list[Item], params: SymmetryParams) -> Estimate:
    """From the sizes of the files and the order of the group."""
    from verglas.ops.symmetry import symmetry_matrices

    order = len(symmetry_matrices(params.group))
    told = estimate_maps(items, 14.0, 0.3 * order)
    seconds = told.seconds + (30.0 * len(items) if params.find_axis else 0.0)
    return Estimate(told.memory_bytes, told.disk_bytes, seconds)


SYMMETRY_STEP = Step("symmetry", SymmetryParams, list_items, run_item, summarise, estimate)
"""Maps averaged over point groups."""
