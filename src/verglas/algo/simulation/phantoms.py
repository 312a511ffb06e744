"""Small bodies of blobs that need no download."""

import numpy as np
import numpy.typing as npt

from verglas.algo.simulation.scatterers import FloatArray, Scatterers, centre_scatterers
from verglas.algo.simulation.solids import fill_solid
from verglas.errors import UserError

MACROMOLECULE_V = 3.0
"""Potential of protein and RNA above that of the ice around them, V."""


def make_blob_phantom(
    count: int, radius_angstrom: float, *, seed: int, sigma_angstrom: float = 6.0
) -> Scatterers:
    """Scatter `count` equal Gaussians in a ball: a body without any symmetry.

    Parameters
    ----------
    count
        Number of Gaussians.
    radius_angstrom
        Radius of the ball that holds their centres.
    seed
        Chooses the body.
    sigma_angstrom
        Standard deviation of each; its volume of (4/3) π (2σ)³ has the contrast of a macromolecule on
        average.
    """
    if count < 1 or not radius_angstrom > 0:
        raise UserError(
            f"a phantom needs at least one blob and a positive radius; got {count}, {radius_angstrom}"
        )
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    positions = directions * radius_angstrom * rng.uniform(size=(count, 1)) ** (1 / 3)
    weight = MACROMOLECULE_V * 4 / 3 * np.pi * (2 * sigma_angstrom) ** 3
    return centre_scatterers(Scatterers(positions, np.full(count, weight), np.full(count, sigma_angstrom)))


def make_demo_ribosome(spacing_angstrom: float = 10.0) -> Scatterers:
    """Build a body with the outlines of a bacterial ribosome, about 250 Å across, centred on its mass.

    A large subunit (a half ball of 105 Å radius with a central protuberance and a stalk) and a small one (an
    ellipsoid with a head and a foot), bridged across a cleft of some 25 Å. The blobs differ in weight,
    always in the same way for one spacing, so that it has detail down to the spacing. It has no symmetry and
    a hand: stalk and foot lie on opposite sides.

    Parameters
    ----------
    spacing_angstrom
        Distance of the Gaussians; 10 Å gives 4,693, 14 Å gives 1,793.
    """
    ellipsoids = np.array(
        [
            [(35.0, -36.0, 96.0), (28.0, 32.0, 28.0)],  # central protuberance
            [(32.0, 100.0, 58.0), (18.0, 42.0, 18.0)],  # stalk
            [(-48.0, -14.0, -22.0), (34.0, 54.0, 70.0)],  # body of the small subunit
            [(-42.0, 34.0, 70.0), (30.0, 44.0, 32.0)],  # its head
            [(-36.0, -58.0, -72.0), (20.0, 18.0, 34.0)],  # its foot
            [(0.0, -24.0, -10.0), (24.0, 12.0, 12.0)],  # bridges
            [(0.0, 18.0, 66.0), (24.0, 10.0, 10.0)],
        ]
    )

    def inside(points: FloatArray) -> npt.NDArray[np.bool_]:
        large = points - (22.0, 0.0, 0.0)
        found = (np.linalg.norm(large, axis=1) <= 105) & (large[:, 0] >= -12)
        for centre, axes in ellipsoids:
            found |= (((points - centre) / axes) ** 2).sum(axis=1) <= 1
        return np.asarray(found)

    body = fill_solid(inside, (130.0, 150.0, 132.0), spacing_angstrom, MACROMOLECULE_V)
    texture = np.random.default_rng(70).uniform(0.3, 1.7, len(body))
    return centre_scatterers(
        Scatterers(body.positions_angstrom, body.weights_v_a3 * texture, body.sigmas_angstrom)
    )
