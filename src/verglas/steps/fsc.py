"""`fsc`: the Fourier shell correlation of two half maps."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import ConfigDict, Field

from verglas.errors import UserError
from verglas.files import check_exists
from verglas.steps.half_curves import (
    CRITERIA,
    CURVE_FILES,
    CURVES_CAPTION,
    LOCAL_CAPTION,
    draw_curves,
    map_local_resolution,
    tell_resolution,
    write_curves,
)
from verglas.steps.map_results import read_mask, read_volume
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    import torch


class FscParams(Params):
    """Correlate two half maps, shell by shell and in 37 cones."""

    model_config = ConfigDict(allow_inf_nan=False)

    half1: Annotated[Path, Field(description="MRC map of one half set")]
    half2: Annotated[Path, Field(description="MRC map of the other, of the same size")]
    mask: Annotated[
        Path | None,
        Field(description="MRC of the same size, 0 to 1; a soft sphere in the box when not given"),
    ] = None
    symmetry: Annotated[str, Field(description="point group, for the information thresholds")] = "C1"
    local_resolution: Annotated[
        bool, Field(description="map where the local correlation falls to 0.143, in Å")
    ] = False


@dataclass(frozen=True)
class _Maps:
    """Paths of the maps and of the mask."""

    half1: Path
    half2: Path
    mask: Path | None


def list_items(params: FscParams) -> list[Item]:
    """One item."""
    from verglas.ops.symmetry import symmetry_matrices

    symmetry_matrices(params.symmetry)
    paths = [check_exists(path, "map") for path in (params.half1, params.half2, params.mask) if path]
    return [Item("fsc", _Maps(params.half1, params.half2, params.mask), tuple(paths))]


def run_item(item: Item, params: FscParams, context: Context) -> ItemResult:
    """Correlate, write the table, draw it."""
    from verglas.algo.averaging.halves import correlate_halves
    from verglas.ops.symmetry import symmetry_matrices

    maps: _Maps = item.record
    first, second, mask, pixel = _read(maps)
    share = 2 * ((3 * float(mask.mean()) / (4 * np.pi)) ** (1 / 3))
    curves = correlate_halves(
        first,
        second,
        pixel,
        mask,
        symmetry_order=len(symmetry_matrices(params.symmetry)),
        diameter_fraction=min(1.0, share),
    )
    general = {"rlnUnfilteredMapHalf1": str(maps.half1), "rlnUnfilteredMapHalf2": str(maps.half2)}
    if maps.mask:
        general["rlnMaskName"] = str(maps.mask)
    write_curves(curves, context.folder, general)
    draw_curves(curves, context.folder)
    outputs = [*CURVE_FILES, "figures/fsc.png"]
    if params.local_resolution:
        outputs += map_local_resolution((first, second), mask, pixel, context.folder)
    told = {name: one.value for name, one in tell_resolution(curves).items()}
    return ItemResult(tuple(outputs), told)


def _read(maps: _Maps) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]":
    import torch

    from verglas.ops.masks import soft_sphere_mask

    (first, pixel), (second, _) = (read_volume(path) for path in (maps.half1, maps.half2))
    if len(set(first.shape)) != 1 or first.shape != second.shape:
        raise UserError(
            f"{str(maps.half1)!r} and {str(maps.half2)!r} have shapes {first.shape} and {second.shape}; expected "
            "cubes of one size"
        )
    if np.array_equal(first, second):
        raise UserError(
            f"{str(maps.half1)!r} and {str(maps.half2)!r} hold the same map; expected those of two half sets"
        )
    size = first.shape[-1]
    if maps.mask is None:
        mask = soft_sphere_mask((size,) * 3, 0.35 * size, 0.1 * size)
    else:
        mask = torch.from_numpy(read_mask(maps.mask, (size, size, size)))
    return torch.from_numpy(first), torch.from_numpy(second), mask, pixel


def summarise(results: dict[str, ItemResult], params: FscParams, folder: Path) -> Summary:
    """Say where the curve falls."""
    values = results["fsc"].values
    told = {name: Value(values[name], "Å", meaning) for name, meaning in CRITERIA.items()}
    figures = [Figure("figures/fsc.png", CURVES_CAPTION)]
    if params.local_resolution:
        figures.append(Figure("figures/local_resolution.png", LOCAL_CAPTION))
    return Summary(figures, told, [], ["fsc.star"])


def estimate(items: list[Item], params: FscParams) -> Estimate:
    """From the size of the maps."""
    from verglas.io.mrc_header import read_mrc_header

    voxels = int(np.prod(read_mrc_header(params.half1).shape))
    return Estimate((500 << 20) + 60 * voxels, 1 << 20, 3.0 + voxels / 2e6)


FSC_STEP = Step(
    name="fsc",
    params=FscParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
