"""The aligned stack of a series, with its sampling mask, as IMOD and emClarity use it."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from verglas.io.mrc import check_finite, create_mrc, read_image
from verglas.model import ImageReference, TiltSeries


def write_aligned_stack(
    folder: Path, stack: str, series: TiltSeries, *, ice_thickness_angstrom: float | None = None
) -> TiltSeries:
    """Write the aligned views and, beside them, a mask of what they hold.

    Parameters
    ----------
    folder
        The job folder.
    stack
        Path of the stack inside it; the mask has the suffix `.samplingMask`.
    series
        The views that are to be in it.
    ice_thickness_angstrom
        Weights the views by what passes ice of this thickness and by their exposures; none leaves them alone.

    Returns
    -------
    TiltSeries
        The record of the aligned stack.

    Raises
    ------
    UserError
        When a view cannot be read or holds values that are not finite.
    """
    import torch

    from verglas.algo.tilt_alignment.aligned_views import align_record, align_view
    from verglas.ops.dose import view_weights

    shape, pixel = (len(series), *series.image_shape), series.pixel_size_angstrom
    weights = torch.ones(len(series))
    if ice_thickness_angstrom is not None:
        weights = view_weights(
            torch.tensor(series.beam_cosines), torch.tensor(series.exposure_e_per_a2), ice_thickness_angstrom
        )
    path = folder / stack
    with (
        create_mrc(path, shape, voxel_size_angstrom=pixel, is_stack=True) as views,
        create_mrc(
            path.with_suffix(".samplingMask"), shape, voxel_size_angstrom=pixel, dtype=np.int8, is_stack=True
        ) as masks,
    ):
        for row, image in enumerate(series.images):
            raw = check_finite(read_image(image), f"view {row + 1} of {series.name!r}")
            aligned, sampled = align_view(torch.from_numpy(raw), series, row)
            views.write((aligned * weights[row]).to(torch.float32).numpy())
            masks.write(sampled.to(torch.int8).numpy())
    place = Path(os.path.abspath(path))
    images = tuple(ImageReference(place, row) for row in range(len(series)))
    return replace(align_record(series), images=images)
