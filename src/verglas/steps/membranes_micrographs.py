"""`membranes micrographs`: what `membranes subtract` took out of particles, taken out of their micrographs.

What the job folder holds
-------------------------
=====================================  ==================================================================
`subtracted/<name>_subtracted.mrc`     the micrographs without membranes, at their own grey scale
`micrographs.star` or `.cs`            the list of `--micrographs` with the new images, or one of our own
`particles.star` or `.cs`              the particles' table with the new micrographs, to extract from
=====================================  ==================================================================
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from verglas.errors import UserError
from verglas.files import check_exists
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    from verglas.io.flat_particles import FlatParticles
    from verglas.model import ImageReference

_DRAWN_PIXELS = 512
_MOST_FIGURES = 24


class MembranesMicrographsParams(Params):
    """Take membranes out of micrographs by the particles that they were taken out of, as a difference of grey."""

    particles: Annotated[
        Path,
        Field(description="`particles.star` or `.cs` of `membranes subtract`, with places in micrographs"),
    ]
    originals: Annotated[
        Path | None,
        Field(description="table of the particles before, row by row; that of `rlnImageOriginalName`"),
    ] = None
    micrographs: Annotated[
        Path | None, Field(description="`micrographs.star` or `.cs` to write again with the new images")
    ] = None


def list_items(params: MembranesMicrographsParams) -> list[Item]:
    """One item a micrograph."""
    particles, originals = _read(params)
    assert particles.micrographs is not None
    images = particles.table.particles.images
    rows: dict[Path, list[int]] = {}
    for row, micrograph in enumerate(particles.micrographs):
        rows.setdefault(micrograph, []).append(row)
    items = []
    for micrograph, own in rows.items():
        stacks = dict.fromkeys(one.path for row in own for one in (images[row], originals[row]))
        items.append(
            Item(micrograph.stem, (str(micrograph), tuple(own)), (params.particles, micrograph, *stacks))
        )
    return items


def _read(params: MembranesMicrographsParams) -> "tuple[FlatParticles, tuple[ImageReference, ...]]":
    from verglas.io.flat_particles import read_flat_particles

    particles = read_flat_particles(params.particles)
    if particles.micrographs is None:
        raise UserError(f"{str(params.particles)!r} does not say where its particles lie in micrographs")
    originals = particles.originals
    if params.originals is not None:
        originals = read_flat_particles(params.originals).table.particles.images
    if originals is None or len(originals) != len(particles.table.names):
        raise UserError(
            f"the images before are not known for each of the {len(particles.table.names)} particles of "
            f"{str(params.particles)!r}; expected `originals`"
        )
    if params.micrographs is not None:
        check_exists(params.micrographs, "list of micrographs")
    return particles, originals


def run_item(item: Item, params: MembranesMicrographsParams, context: Context) -> ItemResult:
    """Take the membranes out of one micrograph."""
    from verglas.algo.membranes.putback import place_particle, sum_patches
    from verglas.io.mrc import check_finite, read_image, read_images, write_mrc
    from verglas.io.relion_micrographs import read_micrograph

    path, rows = Path(item.record[0]), item.record[1]
    particles, originals = _read(params)
    assert particles.coordinates_xy is not None
    table = particles.table.particles
    series = read_micrograph(path)
    image = check_finite(read_image(series.images[0]), f"micrograph {str(path)!r}")
    patches, outside = [], 0
    for row in rows:
        before, after = (read_images([one])[0] for one in (originals[row], table.images[row]))
        factor = table.optics[table.optics_group[row]].pixel_size_angstrom / series.pixel_size_angstrom
        factor = 1.0 if abs(factor - 1) < 1e-3 else factor
        x, y = particles.coordinates_xy[row]
        patch = place_particle(image, before, after, (float(y), float(x)), factor)
        outside += patch is None
        patches += [patch] if patch is not None else []
    removed = sum_patches(patches, (image.shape[0], image.shape[1]))
    result = (image - removed).astype(np.float32)
    name, figure = f"subtracted/{item.name}_subtracted.mrc", f"figures/{item.name}.png"
    write_mrc(context.folder / name, result, voxel_size_angstrom=series.pixel_size_angstrom)
    _draw(image, result, series.pixel_size_angstrom, context.folder / figure)
    values = {
        "particles": len(patches),
        "agreement": float(np.median([abs(one.agreement) for one in patches])) if patches else None,
        "slope": float(np.median([one.slope for one in patches])) if patches else None,
        "removed_rms": float(np.sqrt(np.mean(removed**2))),
        "pixel_size_angstrom": series.pixel_size_angstrom,
    }
    warnings: tuple[str, ...] = ()
    if outside:
        warnings = (
            f"{outside} of {len(rows)} particles do not look like micrograph {item.name!r} where they should lie",
        )
    return ItemResult((name, figure), values, warnings)


def _draw(before: npt.NDArray[np.float32], after: npt.NDArray[np.float32], pixel: float, path: Path) -> None:
    import torch

    from verglas.figures.membranes import draw_subtracted
    from verglas.ops.binning import bin_images

    factor = max(1, max(before.shape) // _DRAWN_PIXELS)
    small = [
        bin_images(torch.from_numpy(np.ascontiguousarray(one)), factor).numpy() for one in (before, after)
    ]
    draw_subtracted(
        [(small[0], small[1])], pixel * factor, path, lowpass_angstrom=max(20.0, 2.5 * pixel * factor)
    )


def summarise(results: dict[str, ItemResult], params: MembranesMicrographsParams, folder: Path) -> Summary:
    """Write the lists with the new micrographs."""
    from verglas.io.relion_micrographs import tabulate_micrographs, write_micrographs
    from verglas.io.star import write_star
    from verglas.model import Optics
    from verglas.steps.series_results import gather_warnings

    images = {name: folder / f"subtracted/{name}_subtracted.mrc" for name in results}
    tables = []
    if params.micrographs is None:
        optics = {
            images[name]: Optics(round(one.values["pixel_size_angstrom"], 6)) for name, one in results.items()
        }
        tabulate_micrographs(folder / "micrographs.star", optics)
        tables.append("micrographs.star")
    elif params.micrographs.suffix == ".cs":
        _rewrite_cs(params.micrographs, folder / "micrographs.cs", "micrograph_blob/path", images)
        tables.append("micrographs.cs")
    else:
        write_micrographs(folder / "micrographs.star", params.micrographs, images)
        tables.append("micrographs.star")
    particles, _ = _read(params)
    if params.particles.suffix == ".cs":
        _rewrite_cs(params.particles, folder / "particles.cs", "location/micrograph_path", images)
        tables.append("particles.cs")
    else:
        assert isinstance(particles.table.source, dict)
        write_star(folder / "particles.star", _rename(particles, images))
        tables.append("particles.star")
    agreements = [one.values["agreement"] for one in results.values() if one.values["agreement"] is not None]
    counts = [one.values["particles"] for one in results.values()]
    values = {
        "micrographs": Value(len(results), "", "in subtracted/"),
        "particles": Value(sum(counts), "", "whose membranes were taken out"),
        "agreement": Value(
            round(float(np.median(agreements)), 3) if agreements else 0.0,
            "",
            "correlation of micrographs with particles before; the median",
        ),
    }
    figures = [
        Figure(f"figures/{name}.png", f"{name} before and after") for name in list(results)[:_MOST_FIGURES]
    ]
    return Summary(figures, values, gather_warnings(results), tables)


def _rename(particles: "FlatParticles", images: dict[str, Path]) -> dict[str, Any]:
    from verglas.io.relion_tilt_series import project_path

    source = particles.table.source
    assert isinstance(source, dict)
    blocks: dict[str, Any] = dict(source)
    rows = blocks["particles"].copy()
    rows["rlnMicrographName"] = [
        project_path(images[Path(str(name)).stem]) if Path(str(name)).stem in images else name
        for name in rows["rlnMicrographName"]
    ]
    blocks["particles"] = rows
    return blocks


def _rewrite_cs(source: Path, path: Path, field: str, images: dict[str, Path]) -> None:
    """Write a `.cs` table again with other micrographs."""
    from verglas.io.cryosparc import read_cs, write_cs
    from verglas.io.relion_tilt_series import project_path

    records = read_cs(source)
    if field not in (records.dtype.names or ()):
        raise UserError(f"{str(source)!r} has no field {field}; expected a list with micrographs")
    old = [one.decode() if isinstance(one, bytes) else str(one) for one in records[field].tolist()]
    names = [project_path(images[Path(one).stem]) if Path(one).stem in images else one for one in old]
    longest = max(len(one.encode()) for one in names)
    layout: list[Any] = []
    for name in records.dtype.names or ():
        kind = records.dtype[name]
        layout.append((name, f"S{longest}") if name == field else (name, kind.base, kind.shape))
    wider = np.empty(len(records), dtype=layout)
    for name in records.dtype.names or ():
        wider[name] = [one.encode() for one in names] if name == field else records[name]
    write_cs(path, wider)


def estimate(items: list[Item], params: MembranesMicrographsParams) -> Estimate:
    """From the sizes of the micrographs, by times measured on one core."""
    from verglas.io.mrc_header import read_mrc_header

    pixels = [
        float(np.prod(read_mrc_header(check_exists(item.record[0], "micrograph")).shape)) for item in items
    ]
    particles = sum(len(item.record[1]) for item in items)
    return Estimate(
        (400 << 20) + int(40 * max(pixels)), int(4 * sum(pixels)), 0.3 * particles + 5e-8 * sum(pixels)
    )


MEMBRANES_MICROGRAPHS_STEP = Step(
    "membranes micrographs", MembranesMicrographsParams, list_items, run_item, summarise, estimate
)
"""Membranes taken out of micrographs by their particles."""
