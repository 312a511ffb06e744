"""Tomograms in which every voxel was corrected with the defocus that it had in each view.

The volume is cut across the beam into slabs. For each, all views are corrected along a surface in its
middle and summed over its voxels, a block of rows at a time. Slabs follow each other from low to high, so
that memory holds the views as they were and as they are corrected for one slab, whatever the volume's size.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from verglas.algo.reconstruction.filtering import ViewFilter, ViewWeigher
from verglas.algo.reconstruction.surfaces import fit_surface
from verglas.algo.reconstruction.volume import reconstruct_blocks
from verglas.model import TiltSeries
from verglas.model.weights import DefocusSurface
from verglas.ops.backprojection import VoxelGrid
from verglas.shapes import Image, Volume

LEAST_STEP_ANGSTROM = 100.0
"""Slabs are no thinner than this."""


@dataclass(frozen=True)
class Slab:
    """Some sections of a volume.

    Parameters
    ----------
    start, stop
        First section, and the one after the last.
    surface
        The matter whose defocus its voxels are corrected with.
    """

    start: int
    stop: int
    surface: DefocusSurface


def choose_defocus_step(
    series: TiltSeries, voxel_size_angstrom: float, resolution_angstrom: float | None
) -> float:
    """Thickness of a slab that still reaches a resolution, Å.

    emClarity's rule: the CTF averaged over all defoci within a slab keeps 0.9 of its amplitude at the
    resolution wanted. Over a spread D that average is the CTF times sin(a) / a with a = π λ s² D / 2. The rule
    is asked at the steepest tilt, where a slab spans 1 / cos of its thickness, and of the envelope instead of
    the CTF's own peaks, of which there may be none near the resolution.

    Parameters
    ----------
    series
        The views that are used.
    voxel_size_angstrom
        Of the volume.
    resolution_angstrom
        What is to be reached; 2.5 voxels when none, and never less.

    Returns
    -------
    float
        At least 100 Å.
    """
    target = max(resolution_angstrom or 0.0, FINEST_VOXELS * voxel_size_angstrom)
    spread = 2 * _PHASE * target**2 / (math.pi * series.optics.wavelength_angstrom)
    cosine = np.cos(np.deg2rad(np.asarray(series.y_tilt_deg))) * np.cos(np.deg2rad(series.x_tilt_deg))
    return max(LEAST_STEP_ANGSTROM, spread * float(cosine.min()))


FINEST_VOXELS = 2.5
# Where sin(a) / a = 0.9.
_PHASE = 0.78683


def plan_slabs(grid: VoxelGrid, step_angstrom: float, particles_angstrom: Tensor | None = None) -> list[Slab]:
    """Cut a volume into an odd number of slabs, none thicker than a step.

    Parameters
    ----------
    grid
        The voxels.
    step_angstrom
        Largest thickness.
    particles_angstrom
        `(n, 3)` xyz from the specimen's centre of particles in any part of it; where a slab holds some, it is
        corrected for their places, else for its middle.

    Returns
    -------
    list of Slab
        From low to high.
    """
    sections, voxel = grid.shape[0], grid.voxel_size_angstrom
    count = math.ceil(sections * voxel / step_angstrom - 1e-9)
    count = min(count + 1 - count % 2, sections)
    edges = [round(i * sections / count) for i in range(count + 1)]
    # Faces lie between sections, whose centres have whole numbers.
    bottom = grid.first_voxel_angstrom()[2] - voxel / 2
    slabs = []
    for start, stop in pairwise(edges):
        low, high = bottom + start * voxel, bottom + stop * voxel
        slabs.append(Slab(start, stop, fit_surface(low, high, particles_angstrom)))
    return slabs


def reconstruct_slabs(
    views: Image,
    series: TiltSeries,
    grid: VoxelGrid,
    options: ViewFilter,
    slabs: Sequence[Slab],
    subsets: Sequence[Tensor],
) -> Iterator[tuple[int, int, list[Volume]]]:
    """Reconstruct a volume slab by slab.

    Parameters
    ----------
    views
        `(n, y, x)` of `prepare_views`.
    series
        Their record.
    grid
        The voxels of the whole volume.
    options
        The weights, with `ctf` "multiply".
    slabs
        From :func:`plan_slabs`.
    subsets
        Indices of the views that make each volume: all of them, or the odd and the even ones.

    Yields
    ------
    tuple
        The first section and the first row of a block, and a volume `(sections, rows, x)` for each subset; all
        blocks of a slab come before those of the next.
    """
    weigher = ViewWeigher(series, grid.voxel_size_angstrom, options)
    corrected = torch.empty_like(views)
    for slab in slabs:
        for view, image in enumerate(views):
            corrected[view] = weigher.weigh(image, view, slab.surface)
        sections = grid.sections(slab.start, slab.stop)
        for row, volumes in reconstruct_blocks(corrected, weigher.frames, sections, subsets):
            yield slab.start, row, volumes
