"""Tomograms as the averaging steps cut particles from them."""

from typing import TYPE_CHECKING

import numpy as np

from verglas.errors import UserError
from verglas.model import AppliedWeights, Tomogram
from verglas.steps.series_particles import SeriesParticles
from verglas.steps.series_results import PIXEL_TOLERANCE
from verglas.steps.step import Context

if TYPE_CHECKING:
    from verglas.algo.averaging.boxes import TomogramSource, WeightedVolume
    from verglas.algo.averaging.transfer import TransferModel


def open_tomograms(
    one: SeriesParticles, pixel_size_angstrom: float, box: int, model: "TransferModel", context: Context
) -> "TomogramSource":
    """Map the tomograms of a series and measure the noise in the boxes of its particles.

    Parameters
    ----------
    one
        The series, its particles and tomograms.
    pixel_size_angstrom
        That is wanted; it must be that of the tomograms.
    box
        Side of the boxes, pixels.
    model
        What weakens the signal.
    context
        Where it runs.

    Raises
    ------
    UserError
        When a tomogram does not say what its views were weighted with, was weighted in another way than particles can
        be cut from, or has other voxels; or when none holds a particle.
    """
    import torch

    from verglas.algo.averaging.boxes import open_boxes
    from verglas.runtime import choose_device

    volumes = [_open(tomogram, pixel_size_angstrom, model) for tomogram in one.tomograms]
    first = volumes[0].weights
    for volume in volumes:
        if not np.array_equal(volume.weights.views, first.views):
            raise UserError(
                f"the tomograms of {one.series.name!r} were made of different views; expected regions of one run of "
                "`reconstruct`"
            )
    positions = one.particles.positions_angstrom
    if not any((volume.tomogram.find_margins(positions) >= 0).any() for volume in volumes):
        raise UserError(
            f"no tomogram of {one.series.name!r} holds any of its {len(positions)} particles; expected some"
        )
    device = choose_device(context.device)
    return open_boxes(volumes, one.series, torch.from_numpy(positions), box, model, device)


def _open(tomogram: Tomogram, pixel_size_angstrom: float, model: "TransferModel") -> "WeightedVolume":
    from verglas.algo.averaging.boxes import WeightedVolume
    from verglas.io.mrc import open_mrc
    from verglas.io.weights import read_weights

    where = f"tomogram {str(tomogram.path)!r}"
    if tomogram.weights_path is None:
        raise UserError(
            f"{where} does not say how its views were weighted; expected one of `reconstruct --ctf 3d`"
        )
    weights = read_weights(tomogram.weights_path)
    _check_weights(weights, where, model)
    voxel = tomogram.voxel_size_angstrom
    if abs(voxel / pixel_size_angstrom - 1) > PIXEL_TOLERANCE:
        raise UserError(
            f"{where} has voxels of {voxel:g} Å; expected {pixel_size_angstrom:g} Å, as the maps have"
        )
    voxels = open_mrc(tomogram.path)
    if voxels.shape != tomogram.shape:
        raise UserError(
            f"{where} has (z, y, x) = {voxels.shape}; expected {tomogram.shape}, as its table says"
        )
    return WeightedVolume(tomogram, voxels, weights)


def _check_weights(weights: AppliedWeights, where: str, model: "TransferModel") -> None:
    if weights.weighting != "ramp":
        raise UserError(f"{where} was made with the weighting {weights.weighting!r}; expected 'ramp'")
    if model.ctf and weights.ctf not in ("3d", "multiply"):
        raise UserError(
            f"{where} was made with `ctf` {weights.ctf}; expected 3d or multiply, or that no CTF is asked for"
        )
    if not model.ctf and weights.ctf != "none":
        raise UserError(f"{where} was made with `ctf` {weights.ctf}; expected none where no CTF is asked for")
