"""`mask`: shapes with soft edges, and masks that follow a density."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
from pydantic import ConfigDict, Field, model_validator

from verglas.errors import UserError
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

_Radius = Annotated[float, Field(gt=0)]


class MaskParams(Params):
    """Make a mask of a shape, or one for each map that follows its density."""

    model_config = ConfigDict(allow_inf_nan=False)

    maps: Annotated[tuple[Path, ...], Field(description="MRC volumes to make masks from")] = ()
    shape: Annotated[
        Literal["sphere", "cylinder", "box"] | None,
        Field(description="make this shape; a cylinder stands along z"),
    ] = None
    box: Annotated[
        tuple[int, int, int] | None, Field(description="x, y, z voxels of the volume that holds the shape")
    ] = None
    pixel_size: Annotated[
        float | None, Field(gt=0, description="voxel size in Å; that of the header for maps")
    ] = None
    radius: Annotated[
        tuple[_Radius, _Radius, _Radius] | None,
        Field(
            description="half the shape's extents along x, y and z in Å; a cylinder takes x for its radius"
        ),
    ] = None
    centre: Annotated[
        tuple[float, float, float], Field(description="x, y, z of the shape's middle in Å from the volume's")
    ] = (0.0, 0.0, 0.0)
    edge: Annotated[float, Field(ge=0, description="width of the soft edge outside in Å")] = 10.0
    lowpass: Annotated[
        float, Field(gt=0, description="resolution in Å to which a density is smoothed first")
    ] = 15.0
    threshold: Annotated[
        float | None,
        Field(description="smallest smoothed density inside; chosen by Otsu's method when not given"),
    ] = None
    extend: Annotated[float, Field(description="how far the mask reaches beyond the threshold in Å")] = 6.0
    dark: Annotated[bool, Field(description="matter is dark in the maps, as in averages of tomograms")] = (
        False
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if bool(self.maps) == bool(self.shape):
            raise ValueError("a mask is made from `maps` or of a `shape`; expected one of the two")
        if self.shape:
            for name in ("box", "pixel_size", "radius"):
                if getattr(self, name) is None:
                    raise ValueError(f"`shape` {self.shape} needs `{name}`")
        if self.box and not all(2 <= size <= 4096 for size in self.box):
            raise ValueError(f"`box` must be 2 to 4096 voxels each way; got {self.box}")
        return self


def list_items(params: MaskParams) -> list[Item]:
    """One item a map, or one for the shape."""
    return list_maps(params.maps) if params.maps else [Item(str(params.shape), None)]


def run_item(item: Item, params: MaskParams, context: Context) -> ItemResult:
    """Make one mask."""
    import torch

    if item.record is None:
        voxel = float(params.pixel_size or 1.0)
        mask, values = make_shape(params), {}
        drawn = [("mask", mask.numpy())]
    else:
        volume, voxel = read_volume(item.record, params.pixel_size)
        mask, threshold = follow_density(torch.from_numpy(volume), voxel, params)
        values = {"threshold": threshold}
        drawn = [("map", volume), ("mask", mask.numpy()), ("map in the mask", volume * mask.numpy())]
    if not float(mask.max()) > 0:
        raise UserError(f"the mask {item.name!r} is zero everywhere; expected its shape within the volume")
    path = write_volume(context, f"masks/{item.name}.mrc", mask.numpy(), voxel)
    figure = draw_maps(context, f"figures/{item.name}.png", drawn, voxel)
    inside = float(mask.double().sum()) * voxel**3
    return ItemResult((path, figure), {**values, "volume_a3": inside, "share": float(mask.double().mean())})


def make_shape(params: MaskParams) -> "torch.Tensor":
    """`(z, y, x)` mask of a shape."""
    from verglas.ops.masks import soft_box_mask, soft_cylinder_mask, soft_ellipsoid_mask

    assert params.box
    assert params.pixel_size
    assert params.radius
    voxel = params.pixel_size
    x, y, z = params.box
    size = (z, y, x)
    radii = [one / voxel for one in reversed(params.radius)]
    centre = [n // 2 + c / voxel for n, c in zip(size, reversed(params.centre), strict=True)]
    edge = params.edge / voxel
    if params.shape == "sphere":
        return soft_ellipsoid_mask(size, radii, edge, centre)
    if params.shape == "cylinder":
        return soft_cylinder_mask(size, radii[2], 2 * radii[0], edge, centre)
    return soft_box_mask(size, [2 * radius for radius in radii], edge, centre)


def follow_density(
    volume: "torch.Tensor", voxel_size_angstrom: float, params: MaskParams
) -> tuple["torch.Tensor", float]:
    """Mask the largest connected part of a smoothed density above a threshold, its holes filled.

    Returns
    -------
    mask
        `(z, y, x)`.
    threshold
        Of the smoothed density.
    """
    import torch
    from scipy.ndimage import binary_fill_holes, label

    from verglas.ops.filters import apply_filter, gaussian_lowpass_filter
    from verglas.ops.masks import mask_from_density

    bright = -volume if params.dark else volume
    filters = gaussian_lowpass_filter(bright.shape, voxel_size_angstrom, params.lowpass)
    smooth = apply_filter(bright, filters, dims=3)
    threshold = choose_threshold(smooth.numpy()) if params.threshold is None else params.threshold
    if not threshold < float(smooth.max()):
        raise UserError(
            f"`threshold` {threshold:g} is above the smoothed density's maximum {float(smooth.max()):g}; "
            "the mask would be empty"
        )
    parts, count = label(smooth.numpy() >= threshold)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    solid = binary_fill_holes(parts == int(sizes.argmax()) + 1)
    mask = mask_from_density(
        torch.from_numpy(solid.astype(np.float32)),
        0.5,
        extend=params.extend / voxel_size_angstrom,
        edge=params.edge / voxel_size_angstrom,
    )
    return mask, threshold


def choose_threshold(density: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> float:
    """Otsu's threshold: the one that parts the values into two classes that differ most."""
    low, high = float(density.min()), float(density.max())
    if not high > low:
        raise UserError(f"the density is {low:g} everywhere; expected a map with matter in it")
    counts, edges = np.histogram(density, 512)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1] / counts.sum()
    mean = np.cumsum(counts * middles)[:-1] / counts.sum()
    total = float((counts * middles).sum() / counts.sum())
    between = (total * below - mean) ** 2 / np.maximum(below * (1 - below), 1e-12)
    return float(edges[1:-1][int(between.argmax())])


def summarise(results: dict[str, ItemResult], params: MaskParams, folder: Path) -> Summary:
    """Gather the figures."""
    volumes = [result.values["volume_a3"] for result in results.values()]
    shares = [result.values["share"] for result in results.values()]
    values = {
        "masks": Value(len(results), "", "in masks/"),
        "volume": Value(
            round(float(np.median(volumes)) / 1e3, 1), "nm³", "inside, soft edges by their weight; the median"
        ),
        "share": Value(round(100 * float(np.median(shares)), 2), "%", "of the box, the median"),
    }
    return Summary(tell_figures(list(results), "central sections, across and along z"), values)


def estimate(items: list[Item], params: MaskParams) -> Estimate:
    """From the sizes of the files."""
    return estimate_maps(items, 16.0, 1.0)


MASK_STEP = Step("mask", MaskParams, list_items, run_item, summarise, estimate)
"""Masks."""
