"""The density of a whole specimen, to compare tomograms with."""

import numpy as np
import numpy.typing as npt

from verglas.algo.simulation.orientations import pose_matrices
from verglas.algo.simulation.render import render_volume
from verglas.algo.simulation.scatterers import join_scatterers, move_scatterers
from verglas.algo.simulation.specimen import Specimen

_AT_ONCE = 2_000_000


def render_specimen(
    specimen: Specimen, shape: tuple[int, int, int], voxel_size_angstrom: float
) -> npt.NDArray[np.float32]:
    """Potential of all that is in the ice, above that of the ice, in V, averaged over each voxel.

    Parameters
    ----------
    specimen
        What is in the ice.
    shape
        `(z, y, x)` voxels; the specimen's centre is voxel `n // 2`.
    voxel_size_angstrom
        Side of a voxel, Å.
    """
    fixed = [specimen.membranes, *specimen.films, *(absorber.scatterers for absorber in specimen.absorbers)]
    volume = render_volume(join_scatterers(fixed), shape, voxel_size_angstrom, sampling="average")
    half = np.array(shape[::-1]) / 2 * voxel_size_angstrom
    for species in specimen.species:
        body, rows = species.scatterers, specimen.rows_of(species)
        places = specimen.particles.positions_angstrom[rows]
        # The radius holds two standard deviations; they are drawn to five.
        reach = body.radius_angstrom + 3 * body.sigmas_angstrom.max(initial=0.0) + voxel_size_angstrom
        rows = rows[(np.abs(places) < half + reach).all(axis=1)]
        batch = max(1, _AT_ONCE // max(len(body), 1))
        for start in range(0, len(rows), batch):
            chosen = specimen.particles.take(rows[start : start + batch])
            copies = [
                move_scatterers(body, matrix, place)
                for matrix, place in zip(
                    pose_matrices(chosen.angles_deg), chosen.positions_angstrom, strict=True
                )
            ]
            volume += render_volume(join_scatterers(copies), shape, voxel_size_angstrom, sampling="average")
    return volume
