"""`rescale`: maps at another voxel size."""

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field

from verglas.steps.map_results import (
    draw_maps,
    estimate_maps,
    list_maps,
    read_volume,
    tell_figures,
    write_volume,
)
from verglas.steps.step import Context, Estimate, Item, ItemResult, Params, Step, Summary, Value


class RescaleParams(Params):
    """Resample maps to a voxel size, by cropping or padding their transforms."""

    model_config = ConfigDict(allow_inf_nan=False)

    maps: Annotated[tuple[Path, ...], Field(min_length=1, description="MRC volumes")]
    pixel_size: Annotated[float, Field(gt=0, le=1000, description="new voxel size in Å")]
    from_pixel_size: Annotated[
        float | None,
        Field(gt=0, description="voxel size of the maps in Å; that of their headers when not given"),
    ] = None
    box: Annotated[
        int | None,
        Field(
            ge=2,
            le=4096,
            description="side of a cube in voxels to cut or pad to; what the map covers when not given",
        ),
    ] = None


def list_items(params: RescaleParams) -> list[Item]:
    """One item a map."""
    return list_maps(params.maps)


def run_item(item: Item, params: RescaleParams, context: Context) -> ItemResult:
    """Rescale one map."""
    import torch

    from verglas.ops.resize import change_voxel_size

    volume, voxel = read_volume(item.record, params.from_pixel_size)
    shape = None if params.box is None else (params.box,) * 3
    result = change_voxel_size(torch.from_numpy(volume), voxel, params.pixel_size, shape).numpy()
    path = write_volume(context, f"maps/{item.name}.mrc", result, params.pixel_size)
    figure = draw_maps(
        context, f"figures/{item.name}.png", [(f"{params.pixel_size:g} Å a voxel", result)], params.pixel_size
    )
    values = {
        "from_shape": list(volume.shape),
        "shape": list(result.shape),
        "from_voxel_size_angstrom": voxel,
    }
    return ItemResult((path, figure), values)


def summarise(results: dict[str, ItemResult], params: RescaleParams, folder: Path) -> Summary:
    """Gather the figures."""
    factors = [result.values["from_voxel_size_angstrom"] / params.pixel_size for result in results.values()]
    values = {
        "maps": Value(len(results), "", "in maps/"),
        "voxel size": Value(params.pixel_size, "Å", "side of a voxel"),
        "factor": Value(round(float(np.median(factors)), 4), "", "old voxel size over new, the median"),
    }
    return Summary(tell_figures(list(results), "central sections of the rescaled map"), values)


def estimate(items: list[Item], params: RescaleParams) -> Estimate:
    """From the sizes of the files."""
    return estimate_maps(items, 12.0, 0.5)


RESCALE_STEP = Step("rescale", RescaleParams, list_items, run_item, summarise, estimate)
"""Maps at another voxel size."""
