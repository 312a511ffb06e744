"""emClarity's tables: `_ctf.tlt`, `_recon.coords`, motive lists (`.csv`), `.order`; and their conventions.

- Lengths of the CTF table are metres and its astigmatism angle radians; underfocus is **negative**. Its
  transforms are IMOD's `.xf` of the raw to the aligned stack, so its geometry is that of `verglas.io.imod`. The
  defocus is that of the aligned stack, whose images are turned: so the astigmatism's angle is counted from the
  tilt axis' normal there, and from the x axis of the raw images here.
- A motive's triple e1, e2, e3 (degrees) means R = Rz(e1) Rx(e2) Rz(e3), active, which takes the reference to
  the tomogram, like R = Rz(rot) Ry(tilt) Rz(psi) here; Rx(b) = Rz(-90) Ry(b) Rz(90), so rot = e1 - 90,
  tilt = e2, psi = e3 + 90.
- A motive's place is counted from 1 in unbinned pixels from the lower left corner of its sub-region.

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
from verglas.io.emclarity_parameters import evaluate as evaluate
from verglas.io.emclarity_parameters import read_parameters as read_parameters
from verglas.io.emclarity_parameters import write_parameters as write_parameters
from verglas.io.imod import ImodAlignment, tilt_series_from_imod, tilt_series_to_imod
from verglas.io.number_table import read_number_table, read_text
from verglas.model import ImageReference, Optics, Particles, TiltSeries
from verglas.units import ANGSTROM_PER_METRE

FloatArray = npt.NDArray[np.float64]

_CTF_FORMATS = (
    *("d", "08.2f", "08.2f", "07.3f", "07.3f", "07.3f", "07.7f", "07.7f", "07.7f", "07.7f"),
    *("e", "e", "e", "e", "e", "e", "e", "e", "e", "d", "d", "d", "8.2f"),
)
_KEPT_MOTIVE_COLUMNS = {
    1: "vglEmclaritySampling",
    2: "vglEmclarityRemoved",
    3: "vglEmclarityParticleId",
    4: "vglEmclarityColumn5",
    5: "vglEmclarityColumn6",
    7: "vglEmclarityPcaFlag",
    8: "vglEmclarityCtfGroup",
    9: "vglEmclaritySnrSubset",
    25: "vglEmclarityClass",
}
_WEIGHT = "vglEmclarityWeight"
_GROUPS = 9
_TO_ZYZ = np.array([-90.0, 0.0, 90.0])


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


def read_motives(path: Path | str) -> FloatArray:
    """Read a motive list.

    Returns
    -------
    ndarray
        `(n, 26)`, or 26 columns for each of several peaks, or the `(n, 6)` x y z e1 e2 e3 that emClarity
        imports.

    Raises
    ------
    MissingFileError, FileFormatError
        When the file is missing or ragged, or a line has another number of values.
    """
    return read_number_table(path, "emClarity motive list", {6, *(26 * peaks for peaks in range(1, 21))})


def write_motives(path: Path | str, motives: npt.ArrayLike) -> None:
    """Write a motive list, blank-separated, whole numbers without a point."""
    rows = np.asarray(motives, dtype=float)
    write_text(path, "".join(" ".join(f"{value:.10g}" for value in row) + "\n" for row in rows))


def particles_from_emclarity(
    motives: FloatArray, geometry: FloatArray, *, pixel_size_angstrom: float, tomogram_name: str
) -> Particles:
    """Turn motives of one sub-region into particles of its tilt series.

    Motives that emClarity left out (-9999 in columns 3 or 26) are among them, with that in `extra`. Of
    several peaks the first is taken. Where the matrix of a motive says otherwise than its triple, the matrix
    is right.

    Parameters
    ----------
    motives
        `(n, 26 or more)`, or `(n, 6)`.
    geometry
        `(2, 3)` of the sub-region: `region_geometry`.
    pixel_size_angstrom
        Of the unbinned images.
    tomogram_name
        Name of the tilt series.

    Raises
    ------
    UserError
        When a half set is neither 1 nor 2.
    """
    count = len(motives)
    is_short = motives.shape[1] == 6
    xyz, triples = (motives[:, :3], motives[:, 3:]) if is_short else (motives[:, 10:13], motives[:, 13:16])
    centre = np.floor(geometry[0] / 2) + 1
    halves = np.zeros(count) if is_short else motives[:, 6]
    if not np.isin(halves, (0, 1, 2)).all():
        raise UserError(f"the motives of {tomogram_name!r} have a half set other than 1 and 2")
    if not is_short:
        matrices = motives[:, 16:25].reshape(-1, 3, 3).transpose(0, 2, 1)
        differs = np.abs(matrices - _matrices_zxz(triples)).max(axis=(1, 2), initial=0.0) > 1e-3
        is_rotation = (
            np.abs(matrices @ matrices.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2), initial=0.0) < 1e-2
        )
        right = (differs & is_rotation)[:, None]
        triples = np.where(right, _triples_zxz(matrices), triples)
    kept = {} if is_short else {label: motives[:, i] for i, label in _KEPT_MOTIVE_COLUMNS.items()}
    return Particles(
        tomogram_names=np.full(count, tomogram_name),
        positions_angstrom=(xyz - centre + geometry[1]) * pixel_size_angstrom,
        angles_deg=triples + _TO_ZYZ,
        half_set=halves.astype(np.int64),
        score=np.full(count, np.nan) if is_short else motives[:, 0],
        extra=pd.DataFrame(kept),
    )


def particles_to_emclarity(
    particles: Particles, geometry: FloatArray, *, pixel_size_angstrom: float
) -> FloatArray:
    """Turn particles of one tilt series into the `(n, 26)` motives of a sub-region.

    Columns that the particles do not have get what emClarity's template search writes; a half set that is not
    assigned becomes 1.

    Parameters
    ----------
    particles
        Particles of one tilt series.
    geometry
        `(2, 3)` of the sub-region: `region_geometry`.
    pixel_size_angstrom
        Of the unbinned images.
    """
    count = len(particles)
    triples = particles.angles_deg - _TO_ZYZ
    centre = np.floor(geometry[0] / 2) + 1
    xyz = particles.positions_angstrom / pixel_size_angstrom - geometry[1] + centre
    group = np.clip(np.ceil(xyz[:, 0] / geometry[0, 0] * _GROUPS), 1, _GROUPS)
    defaults: dict[int, npt.ArrayLike] = {1: 1, 2: 0, 3: np.arange(1, count + 1), 4: 1, 5: 1, 7: 1, 8: group}
    motives = np.zeros((count, 26))
    motives[:, 0] = np.nan_to_num(particles.score)
    motives[:, 6] = np.where(particles.half_set == 0, 1, particles.half_set)
    motives[:, 10:13], motives[:, 13:16] = xyz, triples
    motives[:, 16:25] = _matrices_zxz(triples).transpose(0, 2, 1).reshape(count, 9)
    for column, label in _KEPT_MOTIVE_COLUMNS.items():
        has = label in particles.extra
        motives[:, column] = particles.extra[label] if has else defaults.get(column, float(column == 25))
    return motives


def _region(values: list[float], where: str) -> EmclarityRegion:
    if any(value != int(value) for value in values[:4]):
        raise FileFormatError(f"{where} has a region of {values[:4]}; expected whole numbers")
    width, start, end, thickness = (int(value) for value in values[:4])
    try:
        return EmclarityRegion(width, start, end, thickness, values[4], values[5])
    except UserError as error:
        raise FileFormatError(f"{where}: {error}") from None


def _matrices_zxz(triples_deg: FloatArray) -> FloatArray:
    """`(n, 3, 3)` Rz(e1) Rx(e2) Rz(e3)."""
    (c1, c2, c3), (s1, s2, s3) = np.cos(np.deg2rad(triples_deg)).T, np.sin(np.deg2rad(triples_deg)).T
    rows = [
        [c1 * c3 - s1 * c2 * s3, -c1 * s3 - s1 * c2 * c3, s1 * s2],
        [s1 * c3 + c1 * c2 * s3, -s1 * s3 + c1 * c2 * c3, -c1 * s2],
        [s2 * s3, s2 * c3, c2],
    ]
    return np.array(rows).transpose(2, 0, 1)


def _triples_zxz(matrices: FloatArray) -> FloatArray:
    """`(n, 3)` e1, e2, e3 in degrees; e3 is 0 where the axis stays along z."""
    sine = np.hypot(matrices[:, 2, 0], matrices[:, 2, 1])
    is_upright = sine < 1e-6
    upright = np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0])
    e1 = np.where(is_upright, upright, np.arctan2(matrices[:, 0, 2], -matrices[:, 1, 2]))
    e3 = np.where(is_upright, 0.0, np.arctan2(matrices[:, 2, 0], matrices[:, 2, 1]))
    return np.asarray(np.rad2deg(np.stack([e1, np.arctan2(sine, matrices[:, 2, 2]), e3], axis=1)))


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
