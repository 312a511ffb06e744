"""The references of `align`: read, joined at low resolution, masked and prepared, once for all series."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from verglas.errors import UserError
from verglas.files import check_exists
from verglas.steps.map_results import FloatArray, choose_box, read_mask, read_volume
from verglas.steps.match_inputs import is_model, read_density
from verglas.steps.step import Context

if TYPE_CHECKING:
    import torch

    from verglas.algo.averaging.alignment import Reference
    from verglas.steps.align import AlignParams


@dataclass(frozen=True, eq=False)
class PreparedReferences:
    """What the particles are compared with.

    Parameters
    ----------
    halves
        For each half set a reference of each class.
    pixel_size_angstrom, box
        Of the maps.
    finest_angstrom
        Finest detail that is compared.
    step_deg
        Between orientations on the grid.
    orientations
        On the grid.
    """

    halves: "tuple[list[Reference], list[Reference]]"
    pixel_size_angstrom: float
    box: int
    finest_angstrom: float
    step_deg: float
    orientations: int


def list_maps(params: "AlignParams") -> tuple[Path, ...]:
    """List the files that the references come from.

    Raises
    ------
    UserError
        When one is missing.
    """
    paths = [check_exists(path, "reference") for path in params.reference]
    for folder in params.average:
        paths += [check_exists(folder / name, "file of the average") for name in _FILES]
    if params.mask is not None:
        paths.append(check_exists(params.mask, "mask"))
    return tuple(paths)


_FILES = ("maps/half1_filtered.mrc", "maps/half2_filtered.mrc", "fsc.star")


def prepare_references(params: "AlignParams", context: Context) -> PreparedReferences:
    """Read and prepare the references, or return those that this process has prepared of the same files.

    Raises
    ------
    UserError
        When a map is no cube with an even side, too small, or unlike the others.
    """
    from verglas.runtime import choose_device

    stamps = tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in list_maps(params))
    return _prepare(params, stamps, str(choose_device(context.device)))


@lru_cache(maxsize=1)
def _prepare(
    params: "AlignParams", stamps: tuple[tuple[str, int, int], ...], device: str
) -> PreparedReferences:
    import torch

    from verglas.algo.averaging.alignment import Reference, plan_search
    from verglas.algo.averaging.reference import centre_mass
    from verglas.ops.masks import soft_sphere_mask

    pairs, pixel, finest = _read_pairs(params)
    box = pairs[0][0].shape[-1]
    radius = params.particle_radius
    mask = (
        torch.from_numpy(read_mask(params.mask, (box,) * 3))
        if params.mask is not None
        else soft_sphere_mask((box,) * 3, radius / pixel, _EDGE_PX)
    )
    plan = plan_search(
        radius,
        finest,
        turn_deg=params.turn,
        step_deg=params.turn_step,
        shift_angstrom=params.shift,
        grid_deg=params.angle_search,
        symmetry=params.symmetry,
        refine=params.refine,
    )
    if params.recentre:
        pairs = [(centre_mass(one, mask), centre_mass(other, mask)) for one, other in pairs]
    first, second = (
        [Reference((pair[half] * mask).to(device), pixel, plan) for pair in pairs] for half in (0, 1)
    )
    return PreparedReferences((first, second), pixel, box, finest, plan.step_deg, len(plan.turns))


_EDGE_PX = 4.0


def _read_pairs(params: "AlignParams") -> "tuple[list[tuple[torch.Tensor, torch.Tensor]], float, float]":
    """Read the maps of both half sets for each class, their pixel size, and the finest detail to compare."""
    import torch

    from verglas.algo.averaging.reference import share_low_resolution
    from verglas.ops.filters import apply_filter, gaussian_lowpass_filter

    halves = [folder / name for folder in params.average for name in _FILES[:2]]
    read = [(path, *_read_map(path, params)) for path in params.reference or halves]
    _, first, pixel = read[0]
    for path, volume, voxel in read:
        _check_map(path, volume.shape, voxel, first.shape, pixel, params.particle_radius)
    volumes = [torch.from_numpy(volume) for _, volume, _ in read]
    if params.reference:
        lowpass = gaussian_lowpass_filter(tuple(volumes[0].shape), pixel, params.lowpass)
        low = [apply_filter(volume, lowpass, dims=3) for volume in volumes]
        return [(one, one) for one in low], pixel, params.resolution or params.lowpass
    pairs = list(zip(volumes[::2], volumes[1::2], strict=True))
    if params.rescore:
        pairs = [(other, one) for one, other in pairs]
    else:
        pairs = [share_low_resolution(one, other, pixel, params.shared) for one, other in pairs]
    # Scores of classes are compared, so all of them are taken to the detail that each of them has.
    finest = params.resolution or max(_read_resolution(folder / "fsc.star") for folder in params.average)
    return pairs, pixel, finest


def _read_map(path: Path, params: "AlignParams") -> tuple[FloatArray, float]:
    """Read a map, or draw an atomic model at the sampling of the first series in a box of four radii."""
    import torch

    from verglas.ops.fft import crop_centred, pad_centred

    if not is_model(path):
        return read_volume(path)
    pixel, box = _choose_grid(params)
    drawn = torch.from_numpy(read_density(path, pixel).values)
    fit = crop_centred if len(drawn) >= box else pad_centred
    return fit(drawn, (box,) * 3).numpy(), pixel


def _choose_grid(params: "AlignParams") -> tuple[float, int]:
    """Pixel size and box in which an atomic model is drawn."""
    from verglas.io.relion_tilt_series import read_tilt_series

    pixel = next(iter(read_tilt_series(params.tilt_series).values())).pixel_size_angstrom
    return pixel, choose_box(params.particle_radius, pixel)


def _check_map(
    path: Path,
    shape: tuple[int, ...],
    voxel: float,
    expected: tuple[int, ...],
    pixel: float,
    radius: float,
) -> None:
    size = shape[-1]
    if shape != (size,) * 3 or size % 2:
        raise UserError(f"{str(path)!r} has shape {shape}; expected a cube with an even side")
    if shape != expected or abs(voxel - pixel) > 1e-3 * pixel:
        raise UserError(
            f"{str(path)!r} has {shape} voxels of {voxel:g} Å; expected {expected} of {pixel:g} Å like the first map"
        )
    if size * pixel < 2.5 * radius:
        raise UserError(
            f"{str(path)!r} is {size * pixel:g} Å wide; expected at least {2.5 * radius:g} Å "
            f"for a `particle_radius` of {radius:g} Å"
        )


def _read_resolution(path: Path) -> float:
    """Where the corrected correlation falls to 0.143."""
    import torch

    from verglas.io.star import read_table
    from verglas.ops.fsc import resolution_at

    table = read_table(path, "fsc", required=("rlnResolution", "rlnFourierShellCorrelationCorrected"))
    frequency, curve = (
        torch.tensor(table[label].to_numpy(dtype=float))
        for label in ("rlnResolution", "rlnFourierShellCorrelationCorrected")
    )
    found = float(resolution_at(frequency, curve, 0.143))
    return found if np.isfinite(found) else float(1 / frequency[2])


def read_box(params: "AlignParams") -> int:
    """Side of the maps, pixels."""
    from verglas.io.mrc import read_mrc_header

    first = list_maps(params)[0]
    return _choose_grid(params)[1] if is_model(first) else int(read_mrc_header(first).shape[-1])
