"""`fsc`: the Fourier shell correlation of two half maps."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import ConfigDict, Field

from verglas.errors import UserError
from verglas.files import check_exists
from verglas.steps.half_curves import CURVES_CAPTION, draw_curves, write_curves
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
    write_curves(curves, context.folder / "fsc.star")
    draw_curves(curves, context.folder / "figures/fsc.png")
    values = {"resolution_angstrom": curves.resolution(), "resolution_half_angstrom": curves.resolution(0.5)}
    return ItemResult(("fsc.star", "figures/fsc.png"), values)


def _read(maps: _Maps) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]":
    import torch

    from verglas.ops.masks import soft_sphere_mask

    (first, pixel), (second, _) = (read_volume(path) for path in (maps.half1, maps.half2))
    if len(set(first.shape)) != 1 or first.shape != second.shape:
        raise UserError(
            f"{str(maps.half1)!r} and {str(maps.half2)!r} have shapes {first.shape} and {second.shape}; expected "
            "cubes of one size"
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
    told = {
        "resolution": Value(
            _round(values["resolution_angstrom"]), "Å", "where the corrected correlation falls to 0.143"
        ),
        "resolution at 0.5": Value(_round(values["resolution_half_angstrom"]), "Å", "where it falls to 0.5"),
    }
    return Summary([Figure("figures/fsc.png", CURVES_CAPTION)], told, [], ["fsc.star"])


def _round(value: float | None) -> float | str:
    """Two decimals; a curve that begins below the threshold has no resolution."""
    return "none" if value is None or not np.isfinite(value) else round(value, 2)


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
