"""`helix`: the lattice of tubes: their axis, radius, repeat, starts and strands."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field

from verglas.errors import UserError
from verglas.steps.map_results import estimate_maps, list_maps, read_volume, tell_figures, write_volume
from verglas.steps.step import Context, Estimate, Item, ItemResult, Params, Step, Summary, Value


class HelixParams(Params):
    """Measure the helical lattice of tubes, such as microtubules, in volumes that hold one straight tube each."""

    model_config = ConfigDict(allow_inf_nan=False)

    maps: Annotated[tuple[Path, ...], Field(min_length=1, description="MRC or TIFF volumes")]
    pixel_size: Annotated[
        float | None, Field(gt=0, description="voxel size in Å; that of their headers when not given")
    ] = None
    bright: Annotated[
        bool, Field(description="matter is bright in the volumes, not dark as in tomograms")
    ] = False
    repeat: Annotated[
        tuple[float, float], Field(description="between which the repeat along the axis is looked for, in Å")
    ] = (25.0, 100.0)
    radius: Annotated[
        float | None,
        Field(gt=0, description="largest of the wall's middle, in Å; what the volume holds when not given"),
    ] = None


def list_items(params: HelixParams) -> list[Item]:
    """One item a volume."""
    if not 0 < params.repeat[0] < params.repeat[1]:
        raise UserError(f"`repeat` must be two rising lengths in Å; got {params.repeat}")
    return list_maps(params.maps)


def run_item(item: Item, params: HelixParams, context: Context) -> ItemResult:
    """Find the tube in a volume, unroll it, and read its lattice."""
    from verglas.figures.helix import draw_lattice
    from verglas.ops.helix import find_tube, read_lattice, unroll_tube

    volume, voxel = read_volume(item.record, params.pixel_size)
    if not params.bright:
        volume = -volume
    shortest, longest = (length / voxel for length in params.repeat)
    if shortest < 2:
        raise UserError(
            f"a repeat of {params.repeat[0]:g} Å needs voxels of at most {params.repeat[0] / 2:g} Å; {item.name!r} "
            f"has {voxel:g}"
        )
    tube = find_tube(volume, None if params.radius is None else params.radius / voxel)
    unrolled = unroll_tube(volume, tube)
    lattice = read_lattice(unrolled, shortest, longest)
    path = write_volume(
        context,
        f"unrolled/{item.name}.mrc",
        np.nan_to_num(unrolled, nan=float(np.nanmean(unrolled)))[None].astype(np.float32),
        voxel / 2,
    )
    figure = f"figures/{item.name}.png"
    draw_lattice(unrolled, lattice, voxel, context.folder / figure)
    ranking = lattice.rank_strands()
    margin = ranking[0][1] / max(ranking[1][1], 1e-9)
    values: dict[str, Any] = {
        "centre_voxels": [round(float(value), 2) for value in tube.centre],
        "direction": [round(float(value), 4) for value in tube.direction],
        "radius_angstrom": round(tube.radius * voxel, 2),
        "repeat_angstrom": round(lattice.repeat * voxel, 3),
        "repeat_power": round(lattice.repeat_power, 1),
        "starts": lattice.starts,
        "strands": lattice.strands,
        "next_strands": ranking[1][0],
        "margin": round(margin, 2),
    }
    return ItemResult((path, figure), values, _doubt(item.name, values))


_LEAST_POWER = 5.0
_LEAST_MARGIN = 1.3


def _doubt(name: str, values: dict[str, Any]) -> tuple[str, ...]:
    told = []
    if values["repeat_power"] < _LEAST_POWER:
        told.append(f"{name}: the layer line of the repeat stands out only {values['repeat_power']:g} times")
    if values["margin"] < _LEAST_MARGIN:
        told.append(
            f"{name}: {values['strands']} strands fit only {values['margin']:g} times better than "
            f"{values['next_strands']}"
        )
    return tuple(told)


def summarise(results: dict[str, ItemResult], params: HelixParams, folder: Path) -> Summary:
    """Gather the figures."""
    found = [result.values for result in results.values()]

    def join(key: str) -> str:
        return ", ".join(f"{one[key]:g}" for one in found)

    values = {
        "tubes": Value(len(found), "", "one a volume"),
        "radius": Value(join("radius_angstrom"), "Å", "from the axis to the middle of the wall"),
        "repeat": Value(join("repeat_angstrom"), "Å", "of the subunits along a strand"),
        "strands": Value(join("strands"), "", "along the axis"),
        "starts": Value(
            join("starts"),
            "",
            "of the strongest helix, negative where left-handed if the hand of the volume is right",
        ),
        "margin": Value(join("margin"), "", "times by which the next number of strands fits less well"),
    }
    warnings = [text for result in results.values() for text in result.warnings]
    return Summary(
        tell_figures(
            list(results),
            "the wall unrolled, along the axis and about it, and its transform: strands on the equator, starts on "
            "the layer line of the repeat",
        ),
        values,
        warnings,
    )


def estimate(items: list[Item], params: HelixParams) -> Estimate:
    """From the sizes of the files."""
    told = estimate_maps(items, 16.0, 4.0)
    return Estimate(told.memory_bytes, told.disk_bytes, told.seconds + 10.0 * len(items))


HELIX_STEP = Step("helix", HelixParams, list_items, run_item, summarise, estimate)
"""Lattices of tubes."""
