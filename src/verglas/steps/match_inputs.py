"""What `match` reads: templates from maps and atomic models, and the part of a tomogram that is searched."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from verglas.algo.matching.template import Template, prepare_template
from verglas.errors import UserError
from verglas.files import check_exists, check_name
from verglas.model import Tomogram
from verglas.steps.series_results import PIXEL_TOLERANCE

if TYPE_CHECKING:
    from verglas.steps.match import MatchParams

FloatArray = npt.NDArray[np.float32]

_MODEL_SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
_MAP_SUFFIXES = (".mrc", ".map", ".ccp4", ".rec")


@dataclass(frozen=True, eq=False)
class Density:
    """A molecule as it was given: `(z, y, x)` map, matter bright or dark, and its voxel size in Å."""

    name: str
    values: FloatArray
    voxel_size_angstrom: float


@dataclass(frozen=True)
class Region:
    """Voxels of a tomogram that are searched, zyx: the first, and how many."""

    start: tuple[int, int, int]
    shape: tuple[int, int, int]


def name_template(path: Path) -> str:
    """Name of a template: that of its file, without suffixes."""
    return check_name(path.name.split(".")[0], "template")


def is_model(path: Path) -> bool:
    """Tell an atomic model from a map.

    Raises
    ------
    UserError
        When the suffix is of neither.
    """
    name = path.name.removesuffix(".gz").lower()
    if name.endswith(_MODEL_SUFFIXES):
        return True
    if name.endswith(_MAP_SUFFIXES):
        return False
    raise UserError(
        f"template {str(path)!r} must be a map ({', '.join(_MAP_SUFFIXES)}) or an atomic model "
        f"({', '.join(_MODEL_SUFFIXES)})"
    )


def read_density(path: Path, voxel_size_angstrom: float) -> Density:
    """Read a map, or draw an atomic model about its centre at the given sampling; matter is bright in the latter."""
    from verglas.io.mrc import check_finite, read_mrc, read_mrc_header

    if is_model(path):
        return Density(name_template(path), *_draw_model(path, voxel_size_angstrom))
    header = read_mrc_header(check_exists(path, "template"))
    values = check_finite(read_mrc(path), f"template {str(path)!r}")
    if values.ndim != 3 or min(values.shape) < 4:
        raise UserError(f"template {str(path)!r} must be a volume; got (z, y, x) = {values.shape}")
    if not header.pixel_size_angstrom or not header.pixel_size_angstrom > 0:
        raise UserError(f"template {str(path)!r} does not say its voxel size; expected one in its header")
    return Density(name_template(path), values, header.pixel_size_angstrom)


def _draw_model(path: Path, voxel: float) -> tuple[FloatArray, float]:
    from verglas.algo.simulation.atoms import scatterers_from_atoms
    from verglas.algo.simulation.render import render_volume
    from verglas.algo.simulation.scatterers import centre_scatterers, coarsen_scatterers
    from verglas.io.atoms import read_atoms

    atoms = read_atoms(path)
    body = scatterers_from_atoms(
        atoms.positions_angstrom, atoms.atomic_numbers, atoms.b_factors_a2, atoms.occupancies
    )
    body = centre_scatterers(coarsen_scatterers(body, voxel))
    box = 2 * int(np.ceil(body.radius_angstrom / voxel)) + 8
    return render_volume(body, (box, box, box), voxel, sampling="average"), voxel


def measure_radius(density: Density, invert: bool) -> float:
    """Measure the radius in Å of the ball about the centre in which a molecule is compared with its surroundings.

    It is a fifth larger than that which holds nineteen twentieths of the density. Density counts from a fifth of
    its maximum on, so that a map's noise does not.
    """
    values = density.values if invert else -density.values
    weights = np.where(values > 0.2 * values.max(), values, 0).astype(np.float64)
    axes = [(np.arange(n) - n // 2) * density.voxel_size_angstrom for n in values.shape]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    distance = np.sqrt(z**2 + y**2 + x**2).reshape(-1)
    order = np.argsort(distance)
    mass = np.cumsum(weights.reshape(-1)[order])
    return 1.2 * float(distance[order[np.searchsorted(mass, 0.95 * mass[-1])]])


def check_sampling(tomogram: Tomogram, params: "MatchParams") -> None:
    """Refuse a band or a sampling that the tomogram does not hold."""
    voxel = tomogram.voxel_size_angstrom
    if params.lowpass < 2 * voxel * 0.999:
        raise UserError(
            f"`lowpass` must be at least two voxels of tomogram {tomogram.name!r}, {2 * voxel:g} Å; "
            f"got {params.lowpass:g}"
        )
    if params.pixel_size and params.pixel_size < voxel * 0.999:
        raise UserError(
            f"`pixel_size` must be at least the voxel of tomogram {tomogram.name!r}, {voxel:g} Å; "
            f"got {params.pixel_size:g}"
        )


def check_scale(
    densities: Sequence[Density], radius: float, region: Region, tomogram: Tomogram, params: "MatchParams"
) -> None:
    """Refuse templates whose size in Å cannot be right: too coarse, too small, or larger than the region."""
    for density in densities:
        if 2 * density.voxel_size_angstrom > params.lowpass * 1.001:
            raise UserError(
                f"the voxels of template {density.name!r} are {density.voxel_size_angstrom:g} Å; expected at most "
                f"half of `lowpass`, {params.lowpass / 2:g}"
            )
    if radius < params.lowpass / 2:
        raise UserError(
            f"templates of {radius:.3g} Å radius show nothing at `lowpass` {params.lowpass:g} Å; expected larger "
            f"ones: is the voxel size of {densities[0].name!r}, {densities[0].voxel_size_angstrom:g} Å, right?"
        )
    smallest = min(region.shape) * tomogram.voxel_size_angstrom
    if 2 * radius > smallest:
        raise UserError(
            f"templates of {2 * radius:.4g} Å across are larger than the region of tomogram {tomogram.name!r}, "
            f"{smallest:.4g} Å at its thinnest; expected a larger region, or a smaller `radius`"
        )


def make_templates(
    densities: Sequence[Density],
    mask: Density | None,
    *,
    voxel: float,
    radius_angstrom: float,
    lowpass_angstrom: float,
    invert: bool,
) -> list[Template]:
    """Bring all templates to the sampling of a search."""
    if (
        mask is not None
        and abs(mask.voxel_size_angstrom / densities[0].voxel_size_angstrom - 1) > PIXEL_TOLERANCE
    ):
        raise UserError(
            f"the mask's voxels are {mask.voxel_size_angstrom:g} Å, those of the template "
            f"{densities[0].voxel_size_angstrom:g} Å; expected the same"
        )
    return [
        prepare_template(
            density.name,
            torch.from_numpy(density.values),
            density.voxel_size_angstrom,
            search_voxel_angstrom=voxel,
            radius_angstrom=radius_angstrom,
            lowpass_angstrom=lowpass_angstrom,
            mask=None if mask is None else torch.from_numpy(mask.values),
            invert=invert,
        )
        for density in densities
    ]


def lay_region(
    tomogram: Tomogram,
    size: tuple[float, float, float] | None,
    centre: tuple[float, float, float] | None,
) -> Region:
    """Find the voxels of a box given in Å, xyz from the specimen's centre; all of them where none is given.

    Raises
    ------
    UserError
        When the box lies outside the tomogram.
    """
    if size is None:
        return Region((0, 0, 0), tomogram.shape)
    voxel = tomogram.voxel_size_angstrom
    middle = centre or tomogram.centre_angstrom
    starts, shape = [], []
    for axis, n in enumerate(tomogram.shape):
        xyz = 2 - axis
        place = (middle[xyz] - tomogram.centre_angstrom[xyz]) / voxel + n // 2
        first = max(0, round(place - size[xyz] / voxel / 2))
        last = min(n, round(place + size[xyz] / voxel / 2))
        if last - first < 2:
            raise UserError(
                f"the region of {size} Å about {tuple(middle)} lies outside tomogram {tomogram.name!r}; expected "
                "some of it inside"
            )
        starts.append(first)
        shape.append(last - first)
    return Region((starts[0], starts[1], starts[2]), (shape[0], shape[1], shape[2]))


def read_correction(tomogram: Tomogram) -> tuple[str, bool]:
    """Tell how the views' CTF was corrected, and whether they were weighted by their exposure.

    Tomograms of which nothing is written down count as weighted and not corrected.
    """
    from verglas.io.weights import read_weights

    if tomogram.weights_path is None:
        return "none", True
    applied = read_weights(tomogram.weights_path)
    return "multiply" if applied.ctf == "3d" else applied.ctf, applied.dose_weighted


def read_region(tomogram: Tomogram, region: Region) -> FloatArray:
    """Read the part of a tomogram that is searched.

    Raises
    ------
    UserError
        When the file is not as its record says.
    """
    from verglas.io.mrc import check_finite, read_mrc_header, read_sections

    header = read_mrc_header(check_exists(tomogram.path, "tomogram"))
    if header.shape != tomogram.shape:
        raise UserError(
            f"tomogram {str(tomogram.path)!r} has (z, y, x) = {header.shape}; expected {tomogram.shape}, as its "
            "record says"
        )
    voxel = header.pixel_size_angstrom
    # A header of exactly 1 Å says nothing: many programs write it.
    if voxel and voxel != 1 and abs(voxel / tomogram.voxel_size_angstrom - 1) > PIXEL_TOLERANCE:
        raise UserError(
            f"tomogram {str(tomogram.path)!r} has voxels of {voxel:g} Å; expected "
            f"{tomogram.voxel_size_angstrom:g}, as its record says"
        )
    z, y, x = region.start
    depth, height, width = region.shape
    sections = read_sections(tomogram.path, header, z, z + depth, dtype=np.float32)
    part = np.ascontiguousarray(sections[:, y : y + height, x : x + width])
    return np.asarray(check_finite(part, f"tomogram {tomogram.name!r}"))
