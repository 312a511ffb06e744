"""A local field as IMOD's `.local`, and back.

A `.local` says of areas around places of the specimen how the aligned images of each view are to be changed there:
a line like one of the `.xf` about the area's centre, q' = A q + d, and changes of the tilts. `tilt` goes linearly
from area to area. What we write are shifts alone. Of what is read, the shifts at the areas' centres are kept. A and
the changes of the tilts turn and stretch an area about its centre; the field's slope from area to area says the same
of what lies in the specimen's middle plane.
"""

import numpy as np
import numpy.typing as npt
import torch

from verglas.io.imod_text import ImodLocal
from verglas.model import LocalField
from verglas.ops.local_field import evaluate_field

FloatArray = npt.NDArray[np.float64]

_AREAS = 9
"""So many areas along each axis, for what is linear between areas is a cubic spline here."""


def local_field_to_imod(
    field: LocalField, matrices: FloatArray, image_shape: tuple[int, int], pixel_size_angstrom: float
) -> ImodLocal:
    """Turn a field into local alignments.

    Parameters
    ----------
    field
        Of n views.
    matrices
        `(n, 2, 2)` of the `.xf`.
    image_shape
        `(y, x)` of the raw images, which is that of the aligned ones.
    pixel_size_angstrom
        Of these.
    """
    middle = np.array(image_shape[::-1]) / 2
    low, high = (
        np.asarray(corner) / pixel_size_angstrom + middle
        for corner in (field.low_angstrom, field.high_angstrom)
    )
    start = np.floor(low).astype(int)
    step = np.maximum(1, np.ceil((high - start) / (_AREAS - 1))).astype(int)
    x, y = ((start[i] + step[i] * np.arange(_AREAS) - middle[i]) * pixel_size_angstrom for i in range(2))
    places = torch.from_numpy(np.stack(np.meshgrid(x, y), axis=-1))
    shifts = np.stack(
        [
            evaluate_field(torch.tensor(nodes), field.low_angstrom, field.high_angstrom, places).numpy()
            for nodes in field.shifts_angstrom
        ],
        axis=2,
    )
    moves = -np.einsum("nij,yxnj->yxni", matrices, shifts) / pixel_size_angstrom
    turns = np.broadcast_to(np.eye(2), (*moves.shape[:3], 2, 2))
    return ImodLocal(
        start_px=(int(start[0]), int(start[1])),
        step_px=(int(step[0]), int(step[1])),
        tilt_deg=np.zeros(moves.shape[:3]),
        transforms=np.concatenate([turns, moves[..., None]], axis=-1),
        pixel_size=pixel_size_angstrom / 10,
    )


def local_field_from_imod(
    local: ImodLocal, matrices: FloatArray, image_shape: tuple[int, int], pixel_size_angstrom: float
) -> LocalField:
    """Turn local alignments into a field with a node in each area; parameters as of :func:`local_field_to_imod`."""
    middle = np.array(image_shape[::-1]) / 2
    count = np.array(local.tilt_deg.shape[1::-1])
    start, step = np.asarray(local.start_px), np.maximum(1, local.step_px)
    low = (start - middle) * pixel_size_angstrom
    # A single area holds everywhere, wherever its other end is.
    high = low + np.maximum(1, count - 1) * step * pixel_size_angstrom
    # The centre of an area lies where the change takes to 0.
    places = np.linalg.solve(local.transforms[..., :2], -local.transforms[..., 2:])
    shifts = np.linalg.solve(matrices, places)[..., 0] * pixel_size_angstrom
    return LocalField(
        (float(low[0]), float(low[1])), (float(high[0]), float(high[1])), np.moveaxis(shifts, 2, 0)
    )
