"""The mask of a molecule, grown from its densest places into what is connected with them.

Levels are lowered step by step, and at each only voxels next to the region join it. Dust beside the molecule, however
dense, is reached by no path and stays out (section 16.8.4 of the emClarity tutorial; Himes and Zhang 2018).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import binary_dilation, binary_fill_holes, label, median_filter
from torch import Tensor

from verglas.errors import UserError
from verglas.ops.filters import apply_filter, gaussian_lowpass_filter
from verglas.ops.masks import mask_from_density, soft_sphere_mask

_LOWPASS_ANGSTROM = 14.0
_LEVELS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
_STEP_ANGSTROM = 20.0
_NOISE_DEVIATIONS = 3.0
_PEAK_DEVIATIONS = 5.0
_EXPANSION_ANGSTROM = 10.0
_LEAST_EXPANSION_PX = 3.0


@dataclass(frozen=True, eq=False)
class MoleculeMasks:
    """Two masks of one molecule.

    Parameters
    ----------
    core
        `(z, y, x)` the molecule itself, its edge two voxels soft.
    molecule
        `(z, y, x)` the same grown by 10 Å and at least three voxels, with an edge as wide: what a correlation needs.
    """

    core: Float[Tensor, "z y x"]
    molecule: Float[Tensor, "z y x"]

    @property
    def solvent_factor(self) -> float:
        """Volume of the mask over that of the molecule in it, at least 1."""
        return max(1.0, float(self.molecule.double().sum() / self.core.double().sum()))


def mask_molecule(
    volume: Float[Tensor, "z y x"],
    voxel_size_angstrom: float,
    radius_angstrom: float,
    resolution_angstrom: float = _LOWPASS_ANGSTROM,
) -> MoleculeMasks:
    """Mask the molecule in the middle of a map.

    Parameters
    ----------
    volume
        `(z, y, x)`, dense is bright.
    voxel_size_angstrom
        Side of a voxel.
    radius_angstrom
        Nothing farther from the middle belongs to the molecule; what lies there tells the noise.
    resolution_angstrom
        Of the map; it is smoothed to that, and at least to 14 Å.

    Raises
    ------
    UserError
        When nothing within the radius stands out from what is outside.
    """
    shape = (volume.shape[0], volume.shape[1], volume.shape[2])
    calm = torch.from_numpy(median_filter(volume.cpu().numpy(), 3)).to(volume)
    finest = max(_LOWPASS_ANGSTROM, resolution_angstrom, 2 * voxel_size_angstrom)
    smooth = apply_filter(calm, gaussian_lowpass_filter(shape, voxel_size_angstrom, finest), dims=3)
    ball = soft_sphere_mask(shape, radius_angstrom / voxel_size_angstrom, 0.0).numpy() > 0
    density = smooth.cpu().numpy()
    outside = density[~ball] if not ball.all() else density
    density = np.where(ball, density - np.median(outside), -np.inf)
    noise = 1.4826 * float(np.median(np.abs(outside - np.median(outside))))
    region = grow_region(density, noise, voxel_size_angstrom)
    grown = max(_LEAST_EXPANSION_PX, _EXPANSION_ANGSTROM / voxel_size_angstrom)
    solid = torch.from_numpy(region.astype(np.float32)).to(volume)
    core = mask_from_density(solid, 0.5, edge=2.0)
    return MoleculeMasks(core, mask_from_density(solid, 0.5, extend=grown, edge=grown))


def grow_region(
    density: np.ndarray[tuple[int, ...], np.dtype[np.float32]], noise: float, voxel_size_angstrom: float
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Grow the densest voxels into their neighbours, level by level; holes are filled.

    Parameters
    ----------
    density
        `(z, y, x)` over the background's median.
    noise
        Standard deviation of the background; no level falls below three of it.
    voxel_size_angstrom
        A level carries the region 20 Å, at least a voxel.

    Raises
    ------
    UserError
        When nothing stands out from the noise.
    """
    peak = float(np.quantile(density[np.isfinite(density)], 0.998))
    if not peak > _PEAK_DEVIATIONS * noise:
        raise UserError(
            f"the densest voxels of the map reach {peak:g}, its background scatters by {noise:g}; expected at least "
            f"{_PEAK_DEVIATIONS:g} times that of a molecule"
        )
    steps = max(1, round(_STEP_ANGSTROM / voxel_size_angstrom))
    levels = [max(level * peak, _NOISE_DEVIATIONS * noise) for level in _LEVELS]
    region = _largest(density >= levels[0])
    for level in levels:
        region = binary_dilation(region, iterations=steps, mask=density >= level) | region
    filled: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = binary_fill_holes(region)
    return filled


def _largest(
    seeds: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Keep the seeds that are at least a tenth of the largest in size: a molecule has more than one dense place."""
    parts, count = label(seeds)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    kept: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (sizes >= 0.1 * sizes.max())[parts] & seeds
    return kept
