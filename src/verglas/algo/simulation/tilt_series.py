"""A tilt series of a specimen."""

import numpy as np
import numpy.typing as npt

from verglas.algo.simulation.detector import apply_mtf
from verglas.algo.simulation.scatterers import FloatArray
from verglas.algo.simulation.specimen import Specimen
from verglas.algo.simulation.views import Conditions, View, expect_view
from verglas.errors import UserError
from verglas.model import Optics, TiltSeries
from verglas.ops.geometry import series_matrices
from verglas.runtime import map_threads


def simulate_tilt_series(
    specimen: Specimen,
    geometry: TiltSeries,
    *,
    conditions: Conditions | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> npt.NDArray[np.float32]:
    """Make the images of a series.

    Parameters
    ----------
    specimen
        What is in the ice.
    geometry
        The true record: its geometry, defocus, exposures and hand make the images.
    conditions
        Which effects act; none is all of them but ice noise.
    seed
        Chooses the noise. Each view has a stream of its own, so the result does not depend on `workers`.
    workers
        Threads, one view each; none is as many as torch may use. Each takes about 0.3 GiB.

    Returns
    -------
    ndarray
        `(n, y, x)` electrons per pixel: counts, or expected counts without noise.

    Raises
    ------
    UserError
        When a defocus or exposure is unknown.
    """
    conditions = conditions or Conditions()
    views = make_views(geometry)
    stack = np.empty((len(views), *geometry.image_shape), dtype=np.float32)

    def make(i: int) -> None:
        rng = np.random.default_rng([seed, 5, i])
        stack[i] = expose(specimen, views[i], geometry.image_shape, geometry.optics, conditions, rng)

    map_threads(make, range(len(views)), workers)
    return stack


def make_views(geometry: TiltSeries) -> list[View]:
    """Turn a record into its views.

    Raises
    ------
    UserError
        When a defocus or exposure is unknown.
    """
    for name in ("defocus_u_angstrom", "defocus_v_angstrom", "exposure_e_per_a2"):
        values: FloatArray = getattr(geometry, name)
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise UserError(f"`{name}` of view {row + 1} of {geometry.name!r} is unknown; expected a number")
    matrices = series_matrices(geometry.geometry).numpy()
    return [
        View(
            matrix=matrices[i],
            defocus_u_angstrom=float(geometry.defocus_u_angstrom[i]),
            defocus_v_angstrom=float(geometry.defocus_v_angstrom[i]),
            defocus_angle_deg=float(geometry.defocus_angle_deg[i]),
            phase_shift_deg=float(geometry.phase_shift_deg[i]),
            pre_exposure_e_per_a2=float(geometry.pre_exposure_e_per_a2[i]),
            exposure_e_per_a2=float(geometry.exposure_e_per_a2[i]),
            hand=geometry.hand,
        )
        for i in range(len(geometry))
    ]


def expose(
    specimen: Specimen,
    view: View,
    shape: tuple[int, int],
    optics: Optics,
    conditions: Conditions,
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """Electrons per pixel of one view, `(y, x)`: expected, passed through the MTF, and counted when asked."""
    image = expect_view(specimen, view, shape, optics, conditions, rng)
    image *= np.float32(view.exposure_e_per_a2 * optics.pixel_size_angstrom**2)
    if conditions.mtf_frequencies_per_pixel is not None and conditions.mtf_values is not None:
        image = apply_mtf(image, conditions.mtf_frequencies_per_pixel, conditions.mtf_values)
    if conditions.noise:
        return rng.poisson(np.maximum(image, 0)).astype(np.float32)
    return image
