"""emClarity's tables of tilt series: `_ctf.tlt`, `_recon.coords`, points; and their conventions.

- Lengths of the CTF table are metres and its astigmatism angle radians; underfocus is **negative**. Its
  transforms are IMOD's `.xf` of the raw to the aligned stack, so its geometry is that of `verglas.io.imod`. The
  defocus is that of the aligned stack, whose images are turned: so the astigmatism's angle is counted from the
  tilt axis' normal there, and from the x axis of the raw images here.

Bead models (`.erase`) are IMOD models, or their points as text: `read_imod_model`, `read_points`. Angle files
and transforms are IMOD's too.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from verglas.errors import FileFormatError, UserError
from verglas.files import write_text
from verglas.io.imod import ImodAlignment, tilt_series_from_imod, tilt_series_to_imod
from verglas.io.number_table import read_number_table, read_text
from verglas.model import ImageReference, Optics, TiltSeries
from verglas.units import ANGSTROM_PER_METRE

FloatArray = npt.NDArray[np.float64]

_CTF_FORMATS = (
    *("d", "08.2f", "08.2f", "07.3f", "07.3f", "07.3f", "07.7f", "07.7f", "07.7f", "07.7f"),
    *("e", "e", "e", "e", "e", "e", "e", "e", "e", "d", "d", "d", "8.2f"),
)
_WEIGHT = "vglEmclarityWeight"


@dataclass(frozen=True)
class EmclarityRegion:
    """A sub-region of a tilt series that is reconstructed on its own; unbinned pixels.

    Parameters
    ----------
    width
        Size in x.
    slice_start, slice_end
        First and last slice in y, from 0.
    thickness
        Size in z.
    shift_x
        Positive moves the slice right, so that the region holds the left part.
    shift_z
        Positive is up.
    """

    width: int
    slice_start: int
    slice_end: int
    thickness: int
    shift_x: float = 0.0
    shift_z: float = 0.0

    def __post_init__(self) -> None:
        if min(self.width, self.thickness) < 1 or self.slice_end < self.slice_start:
            raise UserError(
                f"a region has width {self.width}, slices {self.slice_start} to {self.slice_end} and "
                f"thickness {self.thickness}; expected positive sizes"
            )


def read_ctf_table(path: Path | str) -> FloatArray:
    """Read a `_ctf.tlt`.

    Returns
    -------
    ndarray
        `(n, 23)`, or `(n, 22)` from versions that did not write the original view number.

    Raises
    ------
    MissingFileError, FileFormatError
        When the file is missing, or a line is not 22 or 23 finite numbers.
    """
    return read_number_table(path, "emClarity CTF table", {22, 23})


def write_ctf_table(path: Path | str, table: FloatArray) -> None:
    """Write a `_ctf.tlt` in emClarity's number formats."""
    text = []
    for row in table:
        fields = (
            format(round(value) if form == "d" else float(value), form)
            for value, form in zip(row, _CTF_FORMATS, strict=False)
        )
        text.append("\t".join(fields) + "\n")
    write_text(path, "".join(text))


def read_points(path: Path | str) -> FloatArray:
    """Read the points of a model as text, `(n, 3)` xyz, as IMOD's `model2point` writes them.

    Raises
    ------
    MissingFileError, FileFormatError
        When the file is missing, or a line is not 3 finite numbers.
    """
    return read_number_table(path, "point file", {3})


def read_regions(path: Path | str) -> tuple[str, tuple[EmclarityRegion, ...]]:
    """Read a `_recon.coords`.

    Returns
    -------
    prefix, regions
        Name of the tilt series, which the name of the file begins with, and its sub-regions.

    Raises
    ------
    MissingFileError, FileFormatError
        When the file is missing, has another prefix than its name, or not six numbers for each region.
    """
    words = read_text(path, "emClarity coordinates").split()
    where = f"emClarity coordinates {str(path)!r}"
    prefix = words[0] if words else ""
    if not prefix or Path(path).name != f"{prefix}_recon.coords":
        raise FileFormatError(
            f"{where} has the prefix {prefix[:60]!r}; expected that of its name, <prefix>_recon.coords"
        )
    try:
        values = [float(word) for word in words[1:]]
    except ValueError:
        values = [np.nan]
    if not np.isfinite(values).all() or not values:
        raise FileFormatError(f"{where} has something after its prefix that is not a finite number")
    count, rest = values[0], values[1:]
    if count < 1 or len(rest) != 6 * count:
        raise FileFormatError(f"{where} has {len(rest)} numbers for {count:g} regions; expected six for each")
    return prefix, tuple(_region(rest[i : i + 6], where) for i in range(0, len(rest), 6))


def write_regions(folder: Path | str, prefix: str, regions: tuple[EmclarityRegion, ...]) -> Path:
    """Write `<prefix>_recon.coords` into a folder and return its path."""
    lines = [prefix, str(len(regions))]
    for region in regions:
        sizes = (region.width, region.slice_start, region.slice_end, region.thickness)
        lines += [*map(str, sizes), f"{region.shift_x:g}", f"{region.shift_z:g}"]
    path = Path(folder) / f"{prefix}_recon.coords"
    write_text(path, "\n".join(lines) + "\n")
    return path


def region_geometry(region: EmclarityRegion, image_height: int) -> FloatArray:
    """Size and place of a sub-region as emClarity's metadata holds them.

    Parameters
    ----------
    region
        The region.
    image_height
        Rows of the aligned images.

    Returns
    -------
    ndarray
        `(2, 3)` xyz: voxels; and place of the region's centre voxel (`n // 2`) from the specimen's centre,
        px. emClarity clamps slices to 1..height and takes floor((end + start - 1) / 2 - height / 2) as their
        middle.
    """
    start, end = (min(max(value, 1), image_height) for value in (region.slice_start, region.slice_end))
    middle = math.floor((end + start - 1) / 2 - image_height / 2)
    size = (region.width, end - start + 1, region.thickness)
    return np.array([size, (-region.shift_x, middle, region.shift_z)], dtype=float)


def tilt_series_from_emclarity(
    table: FloatArray, *, name: str, stack: Path, image_shape: tuple[int, int] | None = None
) -> TiltSeries:
    """Turn a CTF table into our geometry and defocus; see the module's text.

    Views come in the order of the stack. The exposure of a view is the step of the cumulative exposure from
    the view taken before it, which for the view after a skipped one holds that of the skipped one too.

    Parameters
    ----------
    table
        `(n, 22 or 23)`.
    name
        Name of the series.
    stack
        The stack in `fixedStacks`, whose sections column 23 counts, or without it column 1.
    image_shape
        `(y, x)` of its images, when not those of the aligned stack in the table.

    Raises
    ------
    UserError
        When a column has values that cannot be, such as a pixel size that is not positive.
    """
    table = table[np.argsort(table[:, -1 if table.shape[1] == 23 else 0], kind="stable")]
    numbers = table[:, 22 if table.shape[1] == 23 else 0]
    if not np.isin(numbers, np.arange(1, 100_000)).all():
        raise UserError(f"the CTF table of {name!r} has a view that is not a whole number from 1 up")
    sections = numbers.astype(int) - 1
    optics = Optics(
        pixel_size_angstrom=float(table[0, 15]) * ANGSTROM_PER_METRE,
        voltage_kv=_voltage_kv(float(table[0, 17])),
        cs_mm=float(table[0, 16]) * 1e3,
        amplitude_contrast=float(table[0, 18]),
    )
    shape = image_shape or (int(table[0, 20]), int(table[0, 19]))
    transforms = np.concatenate([table[:, 6:10].reshape(-1, 2, 2), table[:, 1:3, None]], axis=2)
    series = tilt_series_from_imod(
        ImodAlignment(transforms, table[:, 3]), name=name, stack=stack, optics=optics, image_shape=shape
    )
    order = np.argsort(table[:, 10], kind="stable")
    exposure = np.empty(len(table))
    exposure[order] = np.diff(table[order, 10], prepend=0.0)
    mean, half = -table[:, 14] * ANGSTROM_PER_METRE, table[:, 11] * ANGSTROM_PER_METRE
    return replace(
        series,
        images=tuple(ImageReference(stack, int(section)) for section in sections),
        pre_exposure_e_per_a2=table[:, 10] - exposure,
        exposure_e_per_a2=exposure,
        defocus_u_angstrom=mean + half,
        defocus_v_angstrom=mean - half,
        defocus_angle_deg=_fold_deg(np.rad2deg(table[:, 12]) + series.z_rot_deg),
        extra=pd.DataFrame({_WEIGHT: table[:, 13]}),
    )


def tilt_series_to_emclarity(series: TiltSeries) -> FloatArray:
    """Turn our geometry and defocus into a CTF table of 23 columns, selected views only.

    Raises
    ------
    UserError
        When a view has an x tilt, or the defocus or the exposure of a view is unknown.
    """
    views = series.take(series.selected)
    if np.abs(views.x_tilt_deg).max(initial=0.0) > 1e-4:
        raise UserError(f"tilt series {series.name!r} has x tilts, which emClarity does not know")
    for field, values in (("defocus", views.mean_defocus_angstrom), ("exposure", views.exposure_e_per_a2)):
        if not np.isfinite(values).all():
            raise UserError(
                f"the {field} of a view of tilt series {series.name!r} is unknown; emClarity needs it"
            )
    count, optics = len(views), views.optics
    alignment = tilt_series_to_imod(views)
    weight = views.extra[_WEIGHT] if _WEIGHT in views.extra else np.ones(count)
    numbers = [i if image.section is None else image.section for i, image in enumerate(views.images)]
    height, width = views.image_shape
    half = (views.defocus_u_angstrom - views.defocus_v_angstrom) / 2
    columns = [
        np.arange(1, count + 1),
        alignment.transforms[:, :, 2],
        alignment.tilt_deg,
        np.full((count, 1), 0.0),
        np.full((count, 1), 90.0),
        alignment.transforms[:, :, :2].reshape(count, 4),
        views.pre_exposure_e_per_a2 + views.exposure_e_per_a2,
        half / ANGSTROM_PER_METRE,
        np.deg2rad(_fold_deg(views.defocus_angle_deg - views.z_rot_deg)),
        np.asarray(weight, dtype=float),
        -views.mean_defocus_angstrom / ANGSTROM_PER_METRE,
        np.tile(
            [
                optics.pixel_size_angstrom / ANGSTROM_PER_METRE,
                optics.cs_mm * 1e-3,
                _wavelength_metre(optics.voltage_kv),
                optics.amplitude_contrast,
                width,
                height,
                count,
            ],
            (count, 1),
        ),
        np.array(numbers) + 1,
    ]
    table = np.column_stack(columns).astype(float)
    return table[np.argsort(-np.abs(table[:, 3]), kind="stable")]


def _fold_deg(angle_deg: FloatArray) -> FloatArray:
    """Bring directions of a line to -90 up to 90."""
    return np.asarray((angle_deg + 90) % 180 - 90)


def _region(values: list[float], where: str) -> EmclarityRegion:
    if any(value != int(value) for value in values[:4]):
        raise FileFormatError(f"{where} has a region of {values[:4]}; expected whole numbers")
    width, start, end, thickness = (int(value) for value in values[:4])
    try:
        return EmclarityRegion(width, start, end, thickness, values[4], values[5])
    except UserError as error:
        raise FileFormatError(f"{where}: {error}") from None


def _wavelength_metre(voltage_kv: float) -> float:
    """Wavelength by emClarity's constants, so that the column comes back as it was."""
    volts = voltage_kv * 1e3
    return 1226.39e-12 / math.sqrt(volts + 0.97845e-6 * volts**2)


def _voltage_kv(wavelength_metre: float) -> float:
    if not wavelength_metre > 0:
        raise UserError(f"a CTF table has the wavelength {wavelength_metre:g} m; expected a positive one")
    square = (1226.39e-12 / wavelength_metre) ** 2
    # The table has seven digits of the wavelength, which is the voltage to about 0.03 V.
    return round((math.sqrt(1 + 4 * 0.97845e-6 * square) - 1) / (2 * 0.97845e-6) / 1e3, 3)
