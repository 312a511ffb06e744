"""`regions`: parts of specimens that are reconstructed and searched alone.

What the job folder holds
-------------------------
============================  ======================================================================
`regions.star`                centre and size of each region, Å in the specimen's frame, for `reconstruct`
`recon/<name>_recon.coords`   the same for emClarity, in pixels of the tilt images
============================  ======================================================================
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, model_validator

from verglas.errors import UserError
from verglas.files import check_exists
from verglas.model import Region, TiltSeries, Tomogram
from verglas.steps.reconstruction import find_extent
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

FloatArray = npt.NDArray[np.float32]


class RegionsParams(Params):
    """Choose parts of specimens: by limits, from other programs' files, or where tomograms hold material.

    Without `limits` and `files` each tomogram gets the region that holds its material.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    tilt_series: Annotated[
        Path, Field(description="`tilt_series.star`, or `tomograms.star` to find material and to draw on")
    ]
    limits: Annotated[
        tuple[float, ...],
        Field(
            description="x from and to, y from and to, z from and to in Å from the specimen's centre, for each "
            "region; the same in all series"
        ),
    ] = ()
    files: Annotated[
        tuple[Path, ...],
        Field(
            description="IMOD models of six limits a region as recScript2 takes them, NAME_recon.coords, "
            "or regions.star"
        ),
    ] = ()

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.limits and self.files:
            raise ValueError("`limits` and `files` both name regions; expected one of the two")
        if len(self.limits) % 6:
            raise ValueError(f"`limits` must be six numbers for each region; got {len(self.limits)}")
        return self


@dataclass(frozen=True, eq=False)
class _Place:
    """A series with its tomogram, and the regions that are known; none are to be found."""

    series: TiltSeries
    tomogram: Tomogram | None
    regions: tuple[Region, ...] | None


def list_items(params: RegionsParams) -> list[Item]:
    """One item a series that has regions or shall get one."""
    from verglas.io.relion_tilt_series import read_tilt_series

    series = read_tilt_series(params.tilt_series)
    tomograms = _read_tomograms(params)
    known: dict[str, tuple[Region, ...]] | None = None
    if params.limits:
        known = {name: _regions_of_limits(name, params.limits) for name in series}
    elif params.files:
        known = _read_files(params.files, series)
    elif missing := sorted(set(series) - set(tomograms)):
        raise UserError(
            f"{str(params.tilt_series)!r} has no tomogram of {missing[0]!r} to find material in; expected a "
            "`tomograms.star`, or `limits` or `files`"
        )
    items = []
    for name, one in series.items():
        if known is not None and name not in known:
            continue
        tomogram = tomograms.get(name)
        inputs = (tomogram.path,) if tomogram else ()
        items.append(Item(name, _Place(one, tomogram, None if known is None else known[name]), inputs))
    return items


def _read_tomograms(params: RegionsParams) -> dict[str, Tomogram]:
    """Whole tomograms that are there, by the series' name."""
    from verglas.io.relion_tomograms import read_tomograms
    from verglas.io.star import get_table, read_star

    table = get_table(read_star(check_exists(params.tilt_series)), "global", params.tilt_series)
    if "rlnTomoReconstructedTomogram" not in table:
        return {}
    found = read_tomograms(params.tilt_series)
    return {one.name: one for one in found if not one.region and one.path.exists()}


def _regions_of_limits(name: str, limits: tuple[float, ...]) -> tuple[Region, ...]:
    regions = []
    for index, box in enumerate(np.reshape(limits, (-1, 3, 2)).tolist(), 1):
        centre = tuple((low + high) / 2 for low, high in box)
        size = tuple(high - low for low, high in box)
        regions.append(
            Region(name, str(index), (centre[0], centre[1], centre[2]), (size[0], size[1], size[2]))
        )
    return tuple(regions)


def _read_files(files: tuple[Path, ...], series: dict[str, TiltSeries]) -> dict[str, tuple[Region, ...]]:
    known: dict[str, tuple[Region, ...]] = {}
    for path in files:
        for region in _read_file(path, series):
            if region.tomogram_name not in series:
                raise UserError(
                    f"{str(path)!r} has a region of {region.tomogram_name!r}; expected one of {', '.join(series)}"
                )
            known[region.tomogram_name] = (*known.get(region.tomogram_name, ()), region)
    for name, regions in known.items():
        names = [region.name for region in regions]
        if len(set(names)) < len(names):
            raise UserError(f"the files name regions of {name!r} twice; expected each in one file")
    return known


def _read_file(path: Path, series: dict[str, TiltSeries]) -> list[Region]:
    from verglas.io.emclarity import read_regions as read_coords
    from verglas.io.region_files import read_limits_model, region_from_emclarity
    from verglas.io.regions import read_regions

    if path.suffix == ".star":
        return read_regions(path)
    if path.suffix == ".coords":
        name, found = read_coords(path)
        one = _find_series(name, path, series)
    elif path.suffix == ".mod":
        one = _find_series(path.stem, path, series)
        width, height = _aligned_size(one)
        found = read_limits_model(path, (width, height))
    else:
        raise UserError(f"{str(path)!r} is no file of regions; expected a .mod, .coords or .star")
    height = _aligned_size(one)[1]
    return [region_from_emclarity(region, str(i), one, height) for i, region in enumerate(found, 1)]


def _find_series(text: str, path: Path, series: dict[str, TiltSeries]) -> TiltSeries:
    """Return the series that a file is about: the longest name that its own begins with."""
    names = [name for name in series if text == name or text.startswith((f"{name}_", f"{name}."))]
    if not names:
        raise UserError(f"{str(path)!r} belongs to none of the series {', '.join(series)}")
    return series[max(names, key=len)]


def _aligned_size(series: TiltSeries) -> tuple[int, int]:
    """Pixels xy of the images with the tilt axis along y."""
    height, width = series.image_shape
    turned = abs(np.sin(np.deg2rad(series.z_rot_deg)).mean()) > math.sqrt(0.5)
    return (height, width) if turned else (width, height)


def run_item(item: Item, params: RegionsParams, context: Context) -> ItemResult:
    """Find the regions of one series where they are not known, write them for emClarity, and draw them."""
    from verglas.figures.regions import draw_regions
    from verglas.io.emclarity import write_regions as write_coords
    from verglas.io.region_files import region_to_emclarity

    place: _Place = item.record
    frame = place.tomogram or _empty_tomogram(place.series)
    volume, voxel = _read_small(frame)
    regions = place.regions or (_propose(volume, voxel, frame),)
    height = _aligned_size(place.series)[1]
    coords = write_coords(
        context.folder / "recon",
        item.name,
        tuple(region_to_emclarity(region, place.series, height) for region in regions),
    )
    figure = f"figures/{item.name}_regions.png"
    boxes = [(region.name, _to_voxels(region, volume.shape, voxel, frame)) for region in regions]
    section = volume[_middle(volume.shape[0], boxes)]
    draw_regions(
        section.mean(axis=0),
        volume.mean(axis=1),
        boxes,
        voxel,
        context.folder / figure,
        lowpass_angstrom=80.0,
    )
    values = {
        "regions": [
            {
                "name": region.name,
                "centre_angstrom": [round(value, 3) for value in region.centre_angstrom],
                "size_angstrom": [round(value, 3) for value in region.size_angstrom],
            }
            for region in regions
        ],
        "share": round(_share(regions, frame), 4),
    }
    warnings = _warn_of_edges(regions, frame)
    return ItemResult((str(coords.relative_to(context.folder)), figure), values, warnings)


def _empty_tomogram(series: TiltSeries) -> Tomogram:
    """Frame the whole specimen, of which there is no volume."""
    pixel = series.pixel_size_angstrom
    z, y, x = (max(1, round(extent / pixel)) for extent in find_extent(series))
    return Tomogram(series.name, Path(), (z, y, x), pixel)


def _read_small(tomogram: Tomogram) -> tuple[FloatArray, float]:
    """Read a tomogram averaged over cubes of about 20 Å; zeros when there is none."""
    from verglas.algo.reconstruction.material import WORKING_VOXEL_ANGSTROM
    from verglas.io.mrc import read_mrc_header, read_sections

    factor = max(1, round(WORKING_VOXEL_ANGSTROM / tomogram.voxel_size_angstrom))
    shape = tuple(max(1, size // factor) for size in tomogram.shape)
    volume = np.zeros(shape, np.float32)
    if tomogram.path.is_file():
        header = read_mrc_header(tomogram.path)
        z, y, x = shape
        for section in range(z):
            start = section * factor
            slab = read_sections(
                tomogram.path, header, start, min(start + factor, header.shape[0]), dtype=np.float32
            )
            rows = slab.mean(axis=0)[: y * factor, : x * factor]
            height, width = min(factor, rows.shape[0]), min(factor, rows.shape[1])
            volume[section] = rows.reshape(y, height, x, width).mean(axis=(1, 3))
    return volume, tomogram.voxel_size_angstrom * factor


def _corner(shape: tuple[int, ...], voxel: float, frame: Tomogram) -> list[float]:
    """Xyz of the lower face of voxel 0, Å from the specimen's centre."""
    return [
        centre - (size // 2 + 0.5) * frame.voxel_size_angstrom
        for centre, size in zip(frame.centre_angstrom, frame.shape[::-1], strict=True)
    ]


def _propose(volume: FloatArray, voxel: float, frame: Tomogram) -> Region:
    from verglas.algo.reconstruction.material import find_material

    limits = find_material(volume, voxel)[::-1]
    corner = _corner(volume.shape, voxel, frame)
    centre = [low + (a + b) / 2 * voxel for low, (a, b) in zip(corner, limits, strict=True)]
    size = [(b - a) * voxel for a, b in limits]
    return Region(frame.name, "1", (centre[0], centre[1], centre[2]), (size[0], size[1], size[2]))


def _to_voxels(region: Region, shape: tuple[int, ...], voxel: float, frame: Tomogram) -> Any:
    corner = _corner(shape, voxel, frame)
    return tuple(
        ((low - start) / voxel, (high - start) / voxel)
        for (low, high), start in zip(region.limits_angstrom, corner, strict=True)
    )


def _middle(depth: int, boxes: list[tuple[str, Any]]) -> slice:
    """Sections about the middle of the regions, 200 Å of them."""
    middle = round(float(np.mean([np.mean(box[2]) for _, box in boxes])))
    start = min(max(middle - 5, 0), max(depth - 10, 0))
    return slice(start, start + 10)


def _share(regions: tuple[Region, ...], frame: Tomogram) -> float:
    whole = math.prod(frame.shape) * frame.voxel_size_angstrom**3
    return sum(math.prod(region.size_angstrom) for region in regions) / whole


def _warn_of_edges(regions: tuple[Region, ...], frame: Tomogram) -> tuple[str, ...]:
    corner = _corner(frame.shape, frame.voxel_size_angstrom, frame)
    spare = 2 * frame.voxel_size_angstrom
    outside = [
        region.name
        for region in regions
        for (low, high), start, size in zip(region.limits_angstrom, corner, frame.shape[::-1], strict=True)
        if low < start - spare or high > start + size * frame.voxel_size_angstrom + spare
    ]
    names = ", ".join(dict.fromkeys(outside))
    return (f"regions {names} reach beyond the specimen that the series shows",) if outside else ()


def summarise(results: dict[str, ItemResult], params: RegionsParams, folder: Path) -> Summary:
    """Write `regions.star`."""
    from verglas.io.regions import write_regions

    regions = [
        Region(name, one["name"], tuple(one["centre_angstrom"]), tuple(one["size_angstrom"]))
        for name, result in results.items()
        for one in result.values["regions"]
    ]
    write_regions(folder / "regions.star", regions)
    figures = [
        Figure(
            f"figures/{name}_regions.png",
            f"{name}: the regions across the beam, in a section 200 Å thick, and along it",
        )
        for name in results
    ]
    shares = [result.values["share"] for result in results.values()]
    values = {
        "regions": Value(len(regions), "", f"in {len(results)} series"),
        "share": Value(
            round(100 * float(np.median(shares)), 1),
            "%",
            "of the specimen's volume, the median of all series",
        ),
    }
    warnings = [f"{name}: {text}" for name, result in results.items() for text in result.warnings]
    return Summary(figures, values, warnings, ["regions.star"])


def estimate(items: list[Item], params: RegionsParams) -> Estimate:
    """From the sizes of the tomograms."""
    sizes = [
        math.prod(item.record.tomogram.shape) * item.record.tomogram.voxel_size_angstrom**3 / 20**3
        for item in items
        if item.record.tomogram
    ]
    return Estimate(
        (350 << 20) + int(24 * max(sizes, default=0)), len(items) << 20, 3.0 * len(items) + sum(sizes) / 2e6
    )


REGIONS_STEP = Step(
    name="regions",
    params=RegionsParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
"""Parts of specimens."""
