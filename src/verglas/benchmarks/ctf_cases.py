"""Micrographs with known defocus for `verglas bench ctf`.

A slab of ice whose water scatters in its whole depth, or a film of carbon, seen at one angle. The images come from
`algo.simulation`, which has a CTF of its own, and where every depth has the rings of its own defocus.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from verglas.algo.simulation.movies import simulate_micrograph
from verglas.algo.simulation.phantoms import make_blob_phantom
from verglas.algo.simulation.specimen import Population, Species, Specimen, build_specimen
from verglas.algo.simulation.supports import make_amorphous_film
from verglas.algo.simulation.views import Conditions, View
from verglas.model import Optics


@dataclass(frozen=True, eq=False)
class Case:
    """A micrograph with its truth.

    Parameters
    ----------
    image
        `(y, x)` electrons per pixel.
    optics
        Of the image.
    defocus_angstrom, astigmatism_angstrom, angle_deg
        Mean at the image's centre, u less v, and the angle of u from x.
    tilt_deg, axis_deg
        Of the specimen, and the direction of its axis.
    thickness_angstrom
        Of the specimen along the beam.
    kind
        `ice` or `carbon`.
    exposure_e_per_a2
        Å⁻².
    """

    image: npt.NDArray[np.float32]
    optics: Optics
    defocus_angstrom: float
    astigmatism_angstrom: float
    angle_deg: float
    tilt_deg: float
    axis_deg: float
    thickness_angstrom: float
    kind: str
    exposure_e_per_a2: float


def make_case(
    number: int,
    size: int,
    *,
    tilted: bool,
    exposures: tuple[float, float] = (3.0, 60.0),
    pixel_size_angstrom: float = 1.5,
) -> Case:
    """Simulate the micrograph of this number, `size`² pixels.

    Every third is carbon: a film that scatters as 10 nm of it do, on thin ice. The others are ice 200 to 800 Å
    thick with molecules in it. Tilted ones have 60 degrees, or 10 to 60 where the number is odd. Exposures are
    spread evenly in their logarithm.
    """
    rng = np.random.default_rng([number, 31, tilted])
    kind = "carbon" if number % 3 == 2 else "ice"
    defocus, astigmatism = rng.uniform(4000, 30000), rng.uniform(0, 800)
    angle, axis = rng.uniform(-90, 90), rng.uniform(-90, 90)
    tilt = (60.0 if number % 2 == 0 else rng.uniform(10, 60)) if tilted else 0.0
    thickness = 100.0 if kind == "carbon" else rng.uniform(200, 800)
    exposure = float(np.exp(rng.uniform(*np.log(exposures))))
    b_factor = rng.uniform(40, 120)
    optics = Optics(pixel_size_angstrom)
    specimen = _make_specimen(number, size * pixel_size_angstrom, thickness, kind, pixel_size_angstrom, tilt)
    return _simulate(
        specimen,
        kind,
        optics,
        size,
        (defocus, astigmatism, angle),
        (tilt, axis),
        (exposure, b_factor),
        number,
    )


def make_thick_case(number: int, size: int, thickness_angstrom: float, tilt_deg: float = 0.0) -> Case:
    """Simulate ice of this thickness with molecules in it, 20 to 60 e/Å² on `size`² pixels of 1.5 Å.

    The structure of the ice is made in layers of 100 Å, each with the CTF of its own defocus.
    """
    rng = np.random.default_rng([number, 77])
    aberrations = (rng.uniform(6000, 30000), rng.uniform(0, 800), rng.uniform(-90, 90))
    turn = (tilt_deg, rng.uniform(-90, 90))
    dose = (float(np.exp(rng.uniform(*np.log((20, 60))))), rng.uniform(30, 100))
    optics = Optics(1.5)
    specimen = _make_specimen(number, size * 1.5, thickness_angstrom, "ice", 1.5, tilt_deg)
    return _simulate(specimen, "ice", optics, size, aberrations, turn, dose, number)


def _simulate(
    specimen: Specimen,
    kind: str,
    optics: Optics,
    size: int,
    aberrations: tuple[float, float, float],
    turn: tuple[float, float],
    dose: tuple[float, float],
    seed: int,
) -> Case:
    """Make the image for a defocus, its astigmatism and angle, a tilt and its axis, an exposure and a B-factor."""
    (defocus, astigmatism, angle), (tilt, axis), (exposure, b_factor) = aberrations, turn, dose
    matrix = np.eye(4)
    matrix[:3, :3] = _tilt_about(axis, tilt)
    half = astigmatism / 2
    view = View(matrix, defocus + half, defocus - half, angle, exposure_e_per_a2=exposure)
    conditions = Conditions(ice_noise=True, b_factor_a2=b_factor, layer_angstrom=100.0)
    image = simulate_micrograph(specimen, view, (size, size), optics, conditions=conditions, seed=seed)
    along = specimen.extent_angstrom[2] / float(np.cos(np.deg2rad(tilt)))
    return Case(image, optics, defocus, astigmatism, angle, tilt, axis, along, kind, exposure)


def make_empty_image(number: int, size: int) -> npt.NDArray[np.float32]:
    """Make an image of nothing but counted electrons."""
    return np.random.default_rng([number, 32]).poisson(27.0, (size, size)).astype(np.float32)


def _make_specimen(
    number: int, side: float, thickness: float, kind: str, pixel: float, tilt_deg: float
) -> Specimen:
    extent = (side, side, thickness)
    if kind == "carbon":
        plain = build_specimen(f"case_{number}", extent, [], seed=number)
        # A tilted view looks further, and what the CTF brings in from beyond the edge must be there too.
        wide = 1.15 * side / float(np.cos(np.deg2rad(tilt_deg)))
        film = make_amorphous_film((wide, wide, thickness), pixel, seed=number)
        return replace(plain, films=(film,))
    body = make_blob_phantom(800, 50.0, seed=3, sigma_angstrom=2.5)
    molecules = Population(Species("body", body), round(0.3 * (side / 150.0) ** 2))
    return build_specimen(f"case_{number}", extent, [molecules], seed=number)


def _tilt_about(axis_deg: float, tilt_deg: float) -> npt.NDArray[np.float64]:
    """Rotation by the tilt about an axis in the plane of the image."""
    turn, tilt = np.deg2rad(axis_deg), np.deg2rad(tilt_deg)
    x, y = np.cos(turn), np.sin(turn)
    cross = np.array([[0, 0, y], [0, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + np.sin(tilt) * cross + (1 - np.cos(tilt)) * cross @ cross)
