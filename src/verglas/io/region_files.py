"""Regions in other programs' files, as ours and back: emClarity's `.coords`, and IMOD models of limits.

recScript2 of emClarity takes a model that was drawn on a tomogram binned by 10: six points for each region,
at the limits xmin, xmax, ymin, ymax, zmin, zmax in this order.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from verglas.errors import FileFormatError
from verglas.io.emclarity import EmclarityRegion, region_geometry
from verglas.io.imod_model import list_points, read_imod_model
from verglas.model import Region, TiltSeries

FloatArray = npt.NDArray[np.float64]


def read_limits_model(path: Path | str, image_size: tuple[int, int]) -> tuple[EmclarityRegion, ...]:
    """Read the regions of a model as recScript2 does, with its arithmetic.

    Parameters
    ----------
    path
        The model.
    image_size
        xy pixels of the aligned images. How often that is the model's own image is its binning, and the
        thickness of the tomogram is that of the model's image times the binning.

    Raises
    ------
    FileFormatError
        When the points are not six for each region, two limits are the same, or the model's image is larger
        than the images.
    """
    where = f"IMOD model {str(path)!r}"
    model = read_imod_model(path)
    points, _ = list_points(model)
    width, _, depth = model.image_size
    if len(points) == 0 or len(points) % 6:
        raise FileFormatError(f"{where} has {len(points)} points; expected six for each region")
    binning = round(image_size[0] / width) if width else 0
    if binning < 1:
        raise FileFormatError(
            f"{where} was drawn on an image {width} pixels wide; expected at most the {image_size[0]} of the images"
        )
    # recScript2 reads them as text of two decimals; float32 alone would fall below whole numbers.
    groups = np.round(np.round(points.reshape(-1, 6, 3).astype(float), 2) * binning, 2)
    return tuple(_from_limits(group, image_size[0], depth * binning, where) for group in groups)


def _from_limits(points: FloatArray, image_width: int, thickness: int, where: str) -> EmclarityRegion:
    (x0, x1), (y0, y1), (z0, z1) = (
        sorted(points[2 * axis : 2 * axis + 2, axis].tolist()) for axis in range(3)
    )
    width, height, depth = int(x1 - x0), int(y1 - y0), int(z1 - z0)
    if min(width, height, depth) < 1:
        raise FileFormatError(
            f"{where} has a region of {width} x {height} x {depth} pixels; expected its points in the order "
            "xmin, xmax, ymin, ymax, zmin, zmax"
        )
    return EmclarityRegion(
        width,
        int(y0),
        int(y0) + height - 1,
        depth,
        float(int(image_width / 2 - (x0 + width / 2))),
        float(-int(thickness / 2 - (z0 + depth / 2))),
    )


def region_from_emclarity(
    region: EmclarityRegion, name: str, series: TiltSeries, image_height: int
) -> Region:
    """Turn a region of emClarity into ours.

    Parameters
    ----------
    region
        The region.
    name
        What it is called.
    series
        Its tilt series.
    image_height
        Rows of the aligned images.
    """
    pixel = series.pixel_size_angstrom
    size, centre = region_geometry(region, image_height) * pixel
    return Region(series.name, name, (centre[0], centre[1], centre[2]), (size[0], size[1], size[2]))


def region_to_emclarity(region: Region, series: TiltSeries, image_height: int) -> EmclarityRegion:
    """Turn a region of ours into emClarity's, to whole pixels."""
    pixel = series.pixel_size_angstrom
    width, height, depth = (max(1, round(size / pixel)) for size in region.size_angstrom)
    x, y, z = (place / pixel for place in region.centre_angstrom)
    # Its middle is floor((end + start - 1) / 2 - height of the image / 2).
    start = max(1, round(y + image_height / 2 - height / 2 + 1))
    end = min(image_height, start + height - 1)
    return EmclarityRegion(width, start, end, depth, float(-round(x)), float(round(z)))
