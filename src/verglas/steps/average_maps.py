"""What `average` makes of the sums of two half sets: the maps of a cycle, and from an earlier one the final map."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from verglas.errors import UserError
from verglas.files import check_exists
from verglas.steps.map_results import read_mask

if TYPE_CHECKING:
    import torch

    from verglas.algo.averaging.halves import Curves, HalfSums
    from verglas.algo.averaging.registration import Registration

_MOVED_PX = 0.2


@dataclass(frozen=True, eq=False)
class AverageMaps:
    """The maps of an average.

    Parameters
    ----------
    maps
        By the names of their files; `mask` is that of the correlation.
    curves
        Correlation of the half maps.
    compared
        The half maps that were correlated, the second moved onto the first where it had to be.
    registration
        That move.
    symmetry_order, diameter_fraction
        As `correlate_halves` takes them.
    warnings
        Sentences for the user.
    """

    maps: "dict[str, torch.Tensor]"
    curves: "Curves"
    compared: "tuple[torch.Tensor, torch.Tensor]"
    registration: "Registration"
    symmetry_order: int
    diameter_fraction: float
    warnings: list[str] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        """For the block `general` of `fsc.star`: what is needed to make the curves again, and RELION's names."""
        from verglas.ops.rotation import matrices_to_rotation_vectors

        moved = "half2_registered" in self.maps
        turn = matrices_to_rotation_vectors(self.registration.rotation).tolist()
        shift = self.registration.shift_angstrom.tolist()
        return {
            "rlnUnfilteredMapHalf1": "maps/half1.mrc",
            "rlnUnfilteredMapHalf2": f"maps/half2{'_registered' * moved}.mrc",
            "rlnMaskName": "maps/mask.mrc",
            **{f"vglRegistrationTurn{axis}Deg": turn[row] for row, axis in enumerate("XYZ")},
            **{f"vglRegistrationShift{axis}Angst": shift[row] for row, axis in enumerate("XYZ")},
            "vglSymmetryOrder": self.symmetry_order,
            "vglDiameterFraction": self.diameter_fraction,
        }


@dataclass(frozen=True, eq=False)
class MapSize:
    """Side of the map in voxels, their size, and the radius of the molecule."""

    box: int
    pixel_size_angstrom: float
    radius_angstrom: float

    @property
    def diameter_fraction(self) -> float:
        """Diameter of the molecule over the side of the box, at most 1."""
        return min(1.0, 2 * self.radius_angstrom / (self.box * self.pixel_size_angstrom))


def average_halves(
    halves: "tuple[HalfSums, HalfSums]", size: MapSize, mask_choice: str | Path, symmetry: "torch.Tensor"
) -> AverageMaps:
    """Make the maps of a cycle: half maps, unfiltered and filtered, and the average.

    Parameters
    ----------
    halves
        Sums of the half sets.
    size
        Of the map.
    mask_choice
        `sphere`, `molecule` or a file.
    symmetry
        `(g, 3, 3)` operations of the point group.
    """
    from verglas.algo.averaging.halves import correlate_halves, filter_average, reconstruct_half, spread_cones
    from verglas.algo.averaging.registration import move_map, register_halves, stay_put

    box, pixel = size.box, size.pixel_size_angstrom
    first, second = (reconstruct_half(half, box) for half in halves)
    mask, factor, warnings = _choose_mask((first, second), size, mask_choice)
    maps = {"half1": first, "half2": second, "mask": mask}
    registration = register_halves(first, second, pixel, mask, symmetry)
    if registration.displacement_angstrom(size.radius_angstrom) < _MOVED_PX * pixel:
        registration = stay_put()
    else:
        second = maps["half2_registered"] = move_map(second, registration, pixel)
    curves = correlate_halves(
        first,
        second,
        pixel,
        mask,
        symmetry_order=len(symmetry),
        diameter_fraction=size.diameter_fraction,
        solvent_factor=factor,
    )
    correlation = spread_cones(curves, len(halves[0].weights), pixel)
    for number, half in enumerate(halves, 1):
        maps[f"half{number}_filtered"] = filter_average(half, correlation, box, whole=False)
    maps["average"] = filter_average(halves[0] + halves[1], correlation, box, whole=True)
    return AverageMaps(
        maps, curves, (first, second), registration, len(symmetry), size.diameter_fraction, warnings
    )


def _choose_mask(
    halves: "tuple[torch.Tensor, torch.Tensor]", size: MapSize, choice: str | Path
) -> "tuple[torch.Tensor, float, list[str]]":
    """Return the mask, its volume over that of the molecule, and what went wrong."""
    import torch

    from verglas.ops.fsc import fourier_shell_correlation, resolution_at
    from verglas.ops.masks import soft_sphere_mask
    from verglas.ops.molecule_mask import mask_molecule

    box, pixel = size.box, size.pixel_size_angstrom
    radius = size.radius_angstrom / pixel
    sphere = soft_sphere_mask((box,) * 3, radius, max(3.0, 0.2 * radius))
    resolution = float(resolution_at(*fourier_shell_correlation(*halves, pixel, sphere), 0.143))
    try:
        found = mask_molecule(
            (halves[0] + halves[1]) / 2, pixel, size.radius_angstrom, min(resolution, size.radius_angstrom)
        )
    except UserError as error:
        found, warnings = None, [f"no molecule is seen in the map: {error}"]
    else:
        warnings = []
    if isinstance(choice, Path):
        mask = torch.from_numpy(read_mask(choice, (box, box, box)))
    else:
        mask = found.molecule * sphere if found and choice == "molecule" else sphere
    factor = max(1.0, float(mask.double().sum() / found.core.double().sum())) if found else 1.0
    return mask, factor, warnings


def average_all(halves: "tuple[HalfSums, HalfSums]", size: MapSize, previous: AverageMaps) -> AverageMaps:
    """Make one map of both half sets, the second summed where it lies on the first, filtered as the earlier job says.

    Parameters
    ----------
    halves
        Sums of the half sets in one frame.
    size
        Of the map.
    previous
        The average before.
    """
    from verglas.algo.averaging.halves import filter_average, reconstruct_half, spread_cones

    both = halves[0] + halves[1]
    box, pixel = size.box, size.pixel_size_angstrom
    correlation = spread_cones(previous.curves, len(both.weights), pixel)
    maps = {
        "average": filter_average(both, correlation, box, whole=True),
        "unfiltered": reconstruct_half(both, box),
        **previous.maps,
    }
    return AverageMaps(
        maps,
        previous.curves,
        previous.compared,
        previous.registration,
        previous.symmetry_order,
        previous.diameter_fraction,
    )


def list_average_files(folder: Path) -> tuple[Path, ...]:
    """Files of an average that a final one depends on; the first is the first half map."""
    names = ["maps/half1.mrc", "maps/half2.mrc", "maps/mask.mrc", "fsc.star"]
    if (folder / "maps/half2_registered.mrc").exists():
        names.append("maps/half2_registered.mrc")
    return tuple(check_exists(folder / name, "file of the average") for name in names)


def read_registration(folder: Path) -> "Registration":
    """Read how the second half set of an average is moved onto the first."""
    import torch

    from verglas.algo.averaging.registration import Registration
    from verglas.ops.rotation import rotation_vectors_to_matrices

    general = _read_general(folder)
    turn, shift = (
        torch.tensor([float(general[f"vglRegistration{kind}"]) for kind in kinds], dtype=torch.float64)
        for kinds in (_axes("Turn{}Deg"), _axes("Shift{}Angst"))
    )
    return Registration(rotation_vectors_to_matrices(turn[None])[0], shift)


def _axes(form: str) -> Iterator[str]:
    return (form.format(axis) for axis in "XYZ")


def _read_general(folder: Path) -> dict[str, Any]:
    from verglas.io.star import read_star

    path = folder / "fsc.star"
    general = read_star(path).get("general")
    if not isinstance(general, dict) or "vglRegistrationTurnXDeg" not in general:
        raise UserError(
            f"{str(path)!r} tells no registration; expected that of an `average` with two half maps"
        )
    return general


def read_average(folder: Path) -> AverageMaps:
    """Read the half maps and the mask of an average and correlate them again.

    Raises
    ------
    UserError
        When the folder holds none, or its maps do not fit.
    """
    import torch

    from verglas.algo.averaging.halves import correlate_halves
    from verglas.io.mrc import read_mrc
    from verglas.steps.map_results import read_volume

    general = _read_general(folder)
    first, pixel = read_volume(folder / str(general["rlnUnfilteredMapHalf1"]))
    compared = (
        torch.from_numpy(first),
        torch.from_numpy(read_volume(folder / str(general["rlnUnfilteredMapHalf2"]))[0]),
    )
    size = len(first)
    mask = torch.from_numpy(np.ascontiguousarray(read_mrc(folder / "maps/mask.mrc")))
    if compared[0].shape != compared[1].shape or mask.shape != compared[0].shape:
        raise UserError(
            f"the maps of {str(folder)!r} have shapes {compared[0].shape}, {compared[1].shape} and {mask.shape}; "
            f"expected a cube of {size} voxels a side"
        )
    order, fraction = int(general["vglSymmetryOrder"]), float(general["vglDiameterFraction"])
    curves = correlate_halves(
        *compared,
        pixel,
        mask,
        symmetry_order=order,
        diameter_fraction=fraction,
        solvent_factor=float(general["vglSolventFactor"]),
    )
    maps = {"half1": compared[0], "half2": compared[1], "mask": mask}
    return AverageMaps(maps, curves, compared, read_registration(folder), order, fraction)
