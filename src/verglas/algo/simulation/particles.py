"""Stacks of single particles with known poses and defocus."""

from typing import Any

import numpy as np
import numpy.typing as npt

from verglas.algo.simulation.scatterers import Scatterers
from verglas.algo.simulation.specimen import Species, arrange_copies
from verglas.algo.simulation.tilt_series import expose
from verglas.algo.simulation.views import Conditions, View
from verglas.errors import UserError
from verglas.model import Optics
from verglas.runtime import map_threads


def simulate_particles(
    scatterers: Scatterers,
    angles_deg: npt.ArrayLike,
    optics: Optics,
    box: int,
    *,
    defocus_u_angstrom: npt.ArrayLike,
    defocus_v_angstrom: npt.ArrayLike | None = None,
    defocus_angle_deg: npt.ArrayLike = 0.0,
    phase_shift_deg: npt.ArrayLike = 0.0,
    offsets_angstrom: npt.ArrayLike = (0.0, 0.0),
    exposure_e_per_a2: float = 30.0,
    thickness_angstrom: float = 300.0,
    conditions: Conditions | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> npt.NDArray[np.float32]:
    """Make an image of one body for each pose, each with the CTF of its own defocus.

    Parameters
    ----------
    scatterers
        The body in the reference frame.
    angles_deg
        `(n, 3)` rot, tilt, psi.
    optics
        Of the images.
    box
        Side of the images, pixels.
    defocus_u_angstrom, defocus_v_angstrom, defocus_angle_deg, phase_shift_deg
        `(n,)` or one value; v is u unless given.
    offsets_angstrom
        `(n, 2)` or one xy: where the reference's origin lies from the image's centre. RELION's
        `rlnOriginX/YAngst` are the negatives.
    exposure_e_per_a2
        Of each image.
    thickness_angstrom
        Of the ice.
    conditions
        Which effects act; none is all of them but ice noise.
    seed
        Chooses the noise, image by image.
    workers
        Threads; none is as many as torch may use.

    Returns
    -------
    ndarray
        `(n, box, box)` electrons per pixel; protein is dark.

    Raises
    ------
    UserError
        When the arrays do not match.
    """
    angles = np.asarray(angles_deg, dtype=np.float64)
    if angles.ndim != 2 or angles.shape[1] != 3:
        raise UserError(f"`angles_deg` must have shape (n, 3); got {angles.shape}")
    views = _list_views(
        len(angles),
        defocus_u_angstrom=defocus_u_angstrom,
        defocus_v_angstrom=defocus_u_angstrom if defocus_v_angstrom is None else defocus_v_angstrom,
        defocus_angle_deg=defocus_angle_deg,
        phase_shift_deg=phase_shift_deg,
        exposure_e_per_a2=exposure_e_per_a2,
    )
    offsets = _each("offsets_angstrom", offsets_angstrom, (len(angles), 2))
    species = Species("particle", scatterers)
    images = np.empty((len(angles), box, box), dtype=np.float32)

    def make(i: int) -> None:
        place = np.array([[offsets[i, 0], offsets[i, 1], 0.0]])
        single = arrange_copies("particle", species, place, angles[i : i + 1], thickness_angstrom)
        rng = np.random.default_rng([seed, 6, i])
        images[i] = expose(single, views[i], (box, box), optics, conditions or Conditions(), rng)

    map_threads(make, range(len(angles)), workers)
    return images


def _list_views(count: int, **values: npt.ArrayLike) -> list[View]:
    """One straight view an image, each with its own of the values."""
    columns = [_each(name, value, (count,)).tolist() for name, value in values.items()]
    rows: list[dict[str, Any]] = [dict(zip(values, row, strict=True)) for row in zip(*columns, strict=True)]
    return [View(np.eye(4), **row) for row in rows]


def _each(name: str, values: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    array = np.asarray(values, dtype=np.float64)
    try:
        return np.broadcast_to(array, shape)
    except ValueError as error:
        raise UserError(f"`{name}` must be one value or have shape {shape}; got {array.shape}") from error
