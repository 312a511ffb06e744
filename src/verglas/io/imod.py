"""IMOD's alignment of a tilt series, in its files and as our geometry.

IMOD's geometry
---------------
A point q of a raw image and the point q' of the aligned image, both in pixels from the centre of their
image, obey q' = A q + d with the `.xf` line `a11 a12 a21 a22 dx dy`. The centre of n pixels is the coordinate
n / 2 where pixel i reaches from i to i + 1, so it is index (n - 1) / 2: half a pixel before ours, `n // 2`,
when n is even. `tilt` looks at the specimen p through

    q' = (x cos t + z' sin t + axis,  y'),   y' = y cos a - z sin a,   z' = y sin a + z cos a

with t from the `.tlt` (plus the angle of OFFSET) and a from the `.xtilt` less XAXISTILT. This is in the
right-handed frame of a tomogram that was turned with `trimvol -rx`; rows of the slices that `tilt` itself
writes run along -z. Hence y_tilt = t, x_tilt = a, and inv(A) = M Rz(z_rot).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from verglas.errors import FileFormatError, UserError
from verglas.files import check_exists, check_inside
from verglas.io.imod_local import local_field_from_imod, local_field_to_imod
from verglas.io.imod_text import ImodCommand as ImodCommand
from verglas.io.imod_text import ImodLocal as ImodLocal
from verglas.io.imod_text import read_command as read_command
from verglas.io.imod_text import read_local as read_local
from verglas.io.imod_text import read_tlt as read_tlt
from verglas.io.imod_text import read_xf as read_xf
from verglas.io.imod_text import write_command as write_command
from verglas.io.imod_text import write_local as write_local
from verglas.io.imod_text import write_tlt as write_tlt
from verglas.io.imod_text import write_xf as write_xf
from verglas.model import ImageReference, Optics, TiltSeries

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ImodAlignment:
    """What IMOD knows of the geometry of a tilt series of n views.

    Parameters
    ----------
    transforms
        `(n, 2, 3)` lines of the `.xf`: A and, as last column, d in pixels of the raw images.
    tilt_deg
        `(n,)` of the `.tlt`.
    x_tilt_deg
        `(n,)` of the `.xtilt`; none is all zero.
    excluded
        Views left out, counted from 1.
    x_axis_tilt_deg
        XAXISTILT of `tilt.com`, which is taken off the `.xtilt`.
    offset_deg, axis_shift_px
        OFFSET: what is added to every tilt angle, and where the tilt axis is in x.
    shift_xz_px
        SHIFT: how far the slice was moved before it was cut out.
    thickness_px
        THICKNESS, 0 when unknown. All lengths are pixels of the raw images, whatever the binning.
    full_image
        FULLIMAGE xy, when known.
    local
        Local alignments; their shifts become the local field of a `TiltSeries`.
    commands
        The command files that were read, by name.
    """

    transforms: FloatArray
    tilt_deg: FloatArray
    x_tilt_deg: FloatArray | None = None
    excluded: tuple[int, ...] = ()
    x_axis_tilt_deg: float = 0.0
    offset_deg: float = 0.0
    axis_shift_px: float = 0.0
    shift_xz_px: tuple[float, float] = (0.0, 0.0)
    thickness_px: int = 0
    full_image: tuple[int, int] | None = None
    local: ImodLocal | None = None
    commands: Mapping[str, ImodCommand] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.transforms)
        if self.transforms.shape != (count, 2, 3):
            raise UserError(f"`transforms` must have shape (n, 2, 3); got {self.transforms.shape}")
        for name, angles in (("tilt_deg", self.tilt_deg), ("x_tilt_deg", self.x_tilt_deg)):
            if angles is not None and angles.shape != (count,):
                raise UserError(
                    f"`{name}` must have one angle for each of {count} transforms; got {angles.shape}"
                )
        if any(not 1 <= view <= count for view in self.excluded):
            raise UserError(f"`excluded` must be views from 1 to {count}; got {self.excluded}")


def read_imod_folder(folder: Path | str) -> ImodAlignment:
    """Read the alignment in a folder of etomo or AreTomo: `.xf`, `.tlt`, `.xtilt`, `.local`, command files.

    Files are those that `newst.com` and `tilt.com` name, or else the only one of their kind in the folder.

    Raises
    ------
    MissingFileError, FileFormatError
        When a file is missing, cannot be read, or the files do not have the same number of views.
    """
    folder = check_exists(folder, "IMOD folder")
    commands = {n: read_command(folder / n) for n in ("newst.com", "tilt.com") if (folder / n).is_file()}
    newst = commands.get("newst.com", ImodCommand(()))
    tilt = commands.get("tilt.com", ImodCommand(()))
    offsets = newst.numbers("OffsetsInXandY", (0.0, 0.0))
    if any(offsets):
        raise FileFormatError(f"'newst.com' has OffsetsInXandY {offsets[0]:g},{offsets[1]:g}; expected 0,0")
    transforms = read_xf(_find(folder, newst.values("TransformFile"), ".xf"))
    angles = read_tlt(_find(folder, tilt.values("TILTFILE"), ".tlt"))
    x_tilt_file = _find_if_any(folder, tilt.values("XTILTFILE"), ".xtilt")
    local_file = _find_if_any(folder, tilt.values("LOCALFILE"), ".local")
    x_tilt = None if x_tilt_file is None else read_tlt(x_tilt_file)
    for name, values in ((".tlt", angles), (".xtilt", x_tilt)):
        if values is not None and len(values) != len(transforms):
            raise FileFormatError(
                f"folder {str(folder)!r} has {len(values)} angles in its {name}; expected {len(transforms)}, "
                "as many as its .xf"
            )
    excluded = [_parse_list(tilt.values(name)) for name in ("EXCLUDELIST", "EXCLUDELIST2", "EXCLUDE")]
    full = tilt.numbers("FULLIMAGE", (0.0, 0.0))
    offset = tilt.numbers("OFFSET", (0.0, 0.0))
    return ImodAlignment(
        transforms=transforms,
        tilt_deg=angles,
        x_tilt_deg=x_tilt,
        excluded=tuple(sorted({view for views in excluded for view in views})),
        x_axis_tilt_deg=tilt.numbers("XAXISTILT", (0.0,))[0],
        offset_deg=offset[0],
        axis_shift_px=offset[1],
        shift_xz_px=(tilt.numbers("SHIFT", (0.0, 0.0))[0], tilt.numbers("SHIFT", (0.0, 0.0))[1]),
        thickness_px=int(tilt.numbers("THICKNESS", (0.0,))[0]),
        full_image=(int(full[0]), int(full[1])) if min(full) > 0 else None,
        local=None if local_file is None else read_local(local_file),
        commands=commands,
    )


def write_imod_folder(folder: Path | str, name: str, alignment: ImodAlignment) -> list[Path]:
    """Write `<name>.xf`, `.tlt`, `.xtilt`, `.local` and the command files from which IMOD goes on; return them.

    Command files that came with the alignment are written as they are.
    """
    folder = Path(folder)
    write_xf(xf := folder / f"{name}.xf", alignment.transforms)
    write_tlt(tlt := folder / f"{name}.tlt", alignment.tilt_deg)
    written = [xf, tlt]
    if alignment.x_tilt_deg is not None:
        write_tlt(xtilt := folder / f"{name}.xtilt", alignment.x_tilt_deg)
        written.append(xtilt)
    if alignment.local is not None:
        write_local(local := folder / f"{name}.local", alignment.local)
        written.append(local)
    commands = {"newst.com": _newst(name), "tilt.com": _tilt(name, alignment), **alignment.commands}
    for file, command in commands.items():
        write_command(folder / file, command)
    return [*written, *(folder / file for file in commands)]


def tilt_series_from_imod(
    alignment: ImodAlignment, *, name: str, stack: Path, optics: Optics, image_shape: tuple[int, int]
) -> TiltSeries:
    """Turn IMOD's alignment into our geometry; see the module's text.

    The specimen's origin is the point of the tilt axis at the height and slice that IMOD calls the centre;
    `imod_tomogram_centre` says where a tomogram of IMOD lies from it. M holds what of inv(A) is no rotation,
    so that M Rz(z_rot) is inv(A) to rounding.

    Parameters
    ----------
    alignment
        IMOD's files.
    name
        Name of the series.
    stack
        The raw stack, with as many sections as there are transforms.
    optics
        With the pixel size of the raw stack.
    image_shape
        `(y, x)` of the raw images.

    Raises
    ------
    UserError
        When a transform cannot be inverted or mirrors the image.
    """
    matrices, shifts = alignment.transforms[..., :2], alignment.transforms[..., 2]
    bad = ~(np.linalg.det(matrices) > 1e-6)
    if bad.any():
        raise UserError(
            f"transform {int(bad.argmax()) + 1} of tilt series {name!r} flattens or mirrors the image; "
            "expected a rotation with little else"
        )
    inverse = np.linalg.inv(matrices)
    z_rot = np.arctan2(inverse[:, 1, 0] - inverse[:, 0, 1], inverse[:, 0, 0] + inverse[:, 1, 1])
    axis = np.array([alignment.axis_shift_px, 0.0])
    places = np.einsum("nij,nj->ni", inverse, axis - shifts) - _centre_step(image_shape)
    count = len(matrices)
    x_tilt = np.zeros(count) if alignment.x_tilt_deg is None else alignment.x_tilt_deg
    local = None
    if alignment.local is not None:
        local = local_field_from_imod(alignment.local, matrices, image_shape, optics.pixel_size_angstrom)
    width, height = alignment.full_image or (image_shape[1], image_shape[0])
    return TiltSeries(
        name=name,
        optics=optics,
        image_shape=image_shape,
        images=tuple(ImageReference(stack, section) for section in range(count)),
        nominal_tilt_deg=alignment.tilt_deg,
        x_tilt_deg=x_tilt - alignment.x_axis_tilt_deg,
        y_tilt_deg=alignment.tilt_deg + alignment.offset_deg,
        z_rot_deg=np.rad2deg(z_rot),
        x_shift_angstrom=places[:, 0] * optics.pixel_size_angstrom,
        y_shift_angstrom=places[:, 1] * optics.pixel_size_angstrom,
        magnification=inverse @ _rotations_2d(-z_rot),
        selected=~np.isin(np.arange(1, count + 1), alignment.excluded),
        volume_shape=(alignment.thickness_px, height, width) if alignment.thickness_px > 0 else None,
        local=local,
        extra=pd.DataFrame(),
    )


def tilt_series_to_imod(series: TiltSeries) -> ImodAlignment:
    """Turn our geometry into IMOD's; the inverse of `tilt_series_from_imod`.

    Nothing is lost of the geometry; the selection becomes the list of excluded views. A local field is sampled.

    Raises
    ------
    UserError
        When the magnification of a view cannot be inverted.
    """
    if not (np.linalg.det(series.magnification) > 1e-6).all():
        raise UserError(f"a magnification of tilt series {series.name!r} flattens or mirrors the image")
    matrices = np.linalg.inv(series.magnification @ _rotations_2d(np.deg2rad(series.z_rot_deg)))
    places = np.stack([series.x_shift_angstrom, series.y_shift_angstrom], axis=1) / series.pixel_size_angstrom
    shifts = -np.einsum("nij,nj->ni", matrices, places + _centre_step(series.image_shape))
    size = series.volume_shape
    local = None
    if series.local is not None:
        local = local_field_to_imod(
            series.local, np.asarray(matrices, dtype=float), series.image_shape, series.pixel_size_angstrom
        )
    return ImodAlignment(
        transforms=np.concatenate([matrices, shifts[..., None]], axis=2),
        tilt_deg=np.array(series.y_tilt_deg),
        x_tilt_deg=np.array(series.x_tilt_deg) if series.x_tilt_deg.any() else None,
        excluded=tuple(int(view) + 1 for view in np.flatnonzero(~series.selected)),
        thickness_px=0 if size is None else size[0],
        full_image=None if size is None else (size[2], size[1]),
        local=local,
    )


def imod_tomogram_centre(
    shape: tuple[int, int, int],
    voxel_size_angstrom: float,
    alignment: ImodAlignment,
    pixel_size_angstrom: float,
) -> tuple[float, float, float]:
    """Where the centre voxel `n // 2` of a tomogram of IMOD lies in the frame of `tilt_series_from_imod`.

    The tomogram is one of `tilt`, of all slices, turned with `trimvol -rx`. Without SHIFT and OFFSET it is
    half a voxel in every axis of even length, because IMOD's centre lies between the two middle voxels.
    `tilt` halves the width and the thickness as whole numbers, so odd ones are off by half a voxel too.

    Parameters
    ----------
    shape
        `(z, y, x)` of the tomogram.
    voxel_size_angstrom
        Side of its voxels.
    alignment
        With SHIFT and OFFSET.
    pixel_size_angstrom
        Of the raw images.

    Returns
    -------
    tuple
        xyz, Å: `Tomogram.centre_angstrom`.
    """
    shift_x, shift_z = alignment.shift_xz_px
    half = voxel_size_angstrom / 2
    x = half - (alignment.axis_shift_px + shift_x) * pixel_size_angstrom
    y = 0.0 if shape[1] % 2 else half
    z = (-half if shape[0] % 2 else half) + shift_z * pixel_size_angstrom
    return x, y, z


def _centre_step(image_shape: tuple[int, int]) -> FloatArray:
    """Pixels xy from IMOD's centre of an image to ours."""
    return np.array([0.0 if size % 2 else 0.5 for size in image_shape[::-1]])


def _rotations_2d(radians: FloatArray) -> FloatArray:
    cos, sin = np.cos(radians), np.sin(radians)
    return np.stack([np.stack([cos, -sin], axis=-1), np.stack([sin, cos], axis=-1)], axis=-2)


def _find(folder: Path, named: tuple[str, ...] | None, suffix: str) -> Path:
    path = _find_if_any(folder, named, suffix)
    if path is None:
        raise FileFormatError(
            f"folder {str(folder)!r} has no {suffix} file, or more than one and none is named"
        )
    return path


def _find_if_any(folder: Path, named: tuple[str, ...] | None, suffix: str) -> Path | None:
    if named and (path := check_inside(folder, named[0])).is_file():
        return path
    found = sorted(folder.glob(f"*{suffix}"))
    return found[0] if len(found) == 1 else None


def _parse_list(words: tuple[str, ...] | None) -> list[int]:
    """Return the views of a list such as `1,4-6`."""
    views: list[int] = []
    for word in words or ():
        first, dash, last = word.partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)) or len(word) > 12:
            raise FileFormatError(f"the list of excluded views has {word!r}; expected numbers such as 1,4-6")
        low, high = int(first), int(last or first)
        if not 1 <= low <= high < 100_000:
            raise FileFormatError(f"the list of excluded views has {word!r}; expected views from 1 up")
        views += range(low, high + 1)
    return views


def _newst(name: str) -> ImodCommand:
    entries = [f"InputFile\t{name}.mrc", f"OutputFile\t{name}_ali.mrc", f"TransformFile\t{name}.xf"]
    return ImodCommand(("$newstack -StandardInput", *entries, "TaperAtFill\t1,1", "OffsetsInXandY\t0.0,0.0"))


def _tilt(name: str, alignment: ImodAlignment) -> ImodCommand:
    lines = ["$tilt -StandardInput", f"InputProjections {name}_ali.mrc", f"OutputFile {name}_full_rec.mrc"]
    lines += ["IMAGEBINNED 1", f"TILTFILE {name}.tlt"]
    if alignment.x_tilt_deg is not None:
        lines.append(f"XTILTFILE {name}.xtilt")
    if alignment.local is not None:
        lines.append(f"LOCALFILE {name}.local")
    if alignment.thickness_px:
        lines.append(f"THICKNESS {alignment.thickness_px}")
    if alignment.full_image is not None:
        lines.append(f"FULLIMAGE {alignment.full_image[0]} {alignment.full_image[1]}")
    if alignment.excluded:
        lines.append(f"EXCLUDELIST2 {','.join(map(str, alignment.excluded))}")
    lines += [
        f"XAXISTILT {alignment.x_axis_tilt_deg}",
        f"OFFSET {alignment.offset_deg} {alignment.axis_shift_px}",
        f"SHIFT {alignment.shift_xz_px[0]} {alignment.shift_xz_px[1]}",
        "PERPENDICULAR",
        "MODE 2",
    ]
    return ImodCommand(tuple(lines))
