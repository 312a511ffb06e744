"""A tilt series: its images, its geometry, its defocus."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from verglas.errors import UserError
from verglas.model.local_field import LocalField
from verglas.model.optics import Optics

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ImageReference:
    """One image: a file and, when it is a stack, the section in it (0-based)."""

    path: Path
    section: int | None = None


def _zero() -> Any:
    return np.float64(0.0)


def _unknown() -> Any:
    return np.float64(np.nan)


def _every() -> Any:
    return np.True_


@dataclass(frozen=True, eq=False)
class TiltSeries:
    """Images of one specimen area, a row per view, in the order of the stack.

    The geometry is RELION 5's. A specimen point p (xyz, Å, from the tomogram's centre) appears in a view at

        centre of the image + M · (Rz(z_rot) · Ry(y_tilt) · Rx(x_tilt) · p)[xy] + (x_shift, y_shift)

    where the R are active rotations about the named axes and the image's centre is pixel `n // 2`.
    `verglas.ops.geometry.projection_matrices` is the one function that builds these matrices.

    Parameters
    ----------
    name
        Names the series' files.
    optics
        Imaging conditions; the pixel size is that of the images.
    image_shape
        `(y, x)` of every view, pixels.
    images
        Where each view's image is, one for each of the n views.
    nominal_tilt_deg
        `(n,)` stage angles as the microscope wrote them.
    x_tilt_deg, y_tilt_deg, z_rot_deg
        `(n,)` rotations of the specimen; `z_rot_deg` is the angle of the tilt axis in the image.
    x_shift_angstrom, y_shift_angstrom
        `(n,)` where the specimen's centre lies in the view, from the view's centre.
    magnification
        `(n, 2, 2)` in-plane matrix M, the identity unless the magnification changed or was distorted.
    pre_exposure_e_per_a2
        `(n,)` exposure before each view.
    exposure_e_per_a2
        `(n,)` exposure of each view; NaN where unknown.
    defocus_u_angstrom, defocus_v_angstrom, defocus_angle_deg
        `(n,)` defocus at the specimen's centre along the two principal axes, positive for underfocus, and the
        angle of the first from x; NaN where unknown.
    phase_shift_deg
        `(n,)` shift of a phase plate.
    selected
        `(n,)` whether a view is used. A view that is not used keeps its exposure.
    hand
        +1 when points higher in z lie at larger defocus, else -1 (RELION's `rlnTomoHand`).
    volume_shape
        `(z, y, x)` extent of the specimen in pixels of the images, when known.
    local
        Shifts that vary over the image, added to where a point appears; none when there are none.
    extra
        Columns of the file that have no field here, a row a view, kept for writing back.
    """

    name: str
    optics: Optics
    image_shape: tuple[int, int]
    images: tuple[ImageReference, ...]
    nominal_tilt_deg: FloatArray
    x_tilt_deg: FloatArray = field(default_factory=_zero)
    y_tilt_deg: FloatArray | None = None
    z_rot_deg: FloatArray = field(default_factory=_zero)
    x_shift_angstrom: FloatArray = field(default_factory=_zero)
    y_shift_angstrom: FloatArray = field(default_factory=_zero)
    magnification: FloatArray = field(default_factory=lambda: np.eye(2))
    pre_exposure_e_per_a2: FloatArray = field(default_factory=_zero)
    exposure_e_per_a2: FloatArray = field(default_factory=_unknown)
    defocus_u_angstrom: FloatArray = field(default_factory=_unknown)
    defocus_v_angstrom: FloatArray = field(default_factory=_unknown)
    defocus_angle_deg: FloatArray = field(default_factory=_zero)
    phase_shift_deg: FloatArray = field(default_factory=_zero)
    selected: npt.NDArray[np.bool_] = field(default_factory=_every)
    hand: int = 1
    volume_shape: tuple[int, int, int] | None = None
    local: LocalField | None = None
    extra: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __post_init__(self) -> None:
        count = len(self.images)
        if count == 0:
            raise UserError(f"tilt series {self.name!r} has no views; expected at least one")
        if self.y_tilt_deg is None:
            object.__setattr__(self, "y_tilt_deg", self.nominal_tilt_deg)
        for name, dtype, shape, may_be_nan in _PER_TILT:
            value: npt.NDArray[Any] = np.asarray(getattr(self, name), dtype=dtype)
            if value.shape in {(), (2, 2)} and value.shape != (count, *shape):
                value = np.broadcast_to(value, (count, *shape))
            if value.shape != (count, *shape):
                raise UserError(
                    f"`{name}` of tilt series {self.name!r} must have shape {(count, *shape)}; got {value.shape}"
                )
            if not may_be_nan and not np.isfinite(value).all():
                row = int(np.argwhere(~np.isfinite(value))[0][0])
                raise UserError(
                    f"`{name}` of tilt series {self.name!r} must be finite; view {row + 1} is not"
                )
            value = value.copy()
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        if len(self.image_shape) != 2 or min(self.image_shape) < 1:
            raise UserError(
                f"`image_shape` of {self.name!r} must be two positive sizes; got {self.image_shape}"
            )
        if self.hand not in {1, -1}:
            raise UserError(f"`hand` of tilt series {self.name!r} must be 1 or -1; got {self.hand}")
        if self.local is not None and len(self.local) != count:
            raise UserError(
                f"`local` of tilt series {self.name!r} must have {count} views; got {len(self.local)}"
            )
        if len(self.extra) not in {0, count}:
            raise UserError(
                f"`extra` of tilt series {self.name!r} must have {count} rows; got {len(self.extra)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def pixel_size_angstrom(self) -> float:
        """Side of a pixel of the images, Å."""
        return self.optics.pixel_size_angstrom

    @property
    def mean_defocus_angstrom(self) -> FloatArray:
        """`(n,)` mean of the two principal defoci, Å; NaN where unknown."""
        return np.asarray((self.defocus_u_angstrom + self.defocus_v_angstrom) / 2)

    @property
    def beam_cosines(self) -> FloatArray:
        """`(n,)` cosine of the angle between the beam and the specimen's z axis."""
        tilts = np.deg2rad(np.stack([np.asarray(self.y_tilt_deg), self.x_tilt_deg]))
        return np.asarray(np.cos(tilts).prod(axis=0))

    @property
    def geometry(self) -> dict[str, FloatArray]:
        """What decides where points appear, by name, as `verglas.ops.geometry.series_matrices` takes it."""
        names = (
            "x_tilt_deg",
            "y_tilt_deg",
            "z_rot_deg",
            "x_shift_angstrom",
            "y_shift_angstrom",
            "magnification",
        )
        return {name: getattr(self, name) for name in names}

    def take(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_] | list[int]) -> Self:
        """Return the series with only these views, in this order."""
        index = np.arange(len(self))[np.asarray(rows)]
        changes: dict[str, Any] = {name: getattr(self, name)[index] for name, *_ in _PER_TILT}
        changes["images"] = tuple(self.images[i] for i in index)
        if self.local is not None:
            changes["local"] = self.local.take(index)
        if len(self.extra):
            changes["extra"] = self.extra.iloc[index].reset_index(drop=True)
        return replace(self, **changes)

    def map_images(self, change: Callable[[ImageReference], ImageReference]) -> Self:
        """Return the series with every image reference replaced by what `change` makes of it."""
        return replace(self, images=tuple(change(image) for image in self.images))


_MAY_BE_NAN = {"exposure_e_per_a2", "defocus_u_angstrom", "defocus_v_angstrom"}
_PER_TILT: tuple[tuple[str, type, tuple[int, ...], bool], ...] = tuple(
    (
        item.name,
        bool if item.name == "selected" else float,
        (2, 2) if item.name == "magnification" else (),
        item.name in _MAY_BE_NAN,
    )
    for item in fields(TiltSeries)
    if item.name.endswith(("_deg", "_angstrom", "_e_per_a2")) or item.name in {"magnification", "selected"}
)
