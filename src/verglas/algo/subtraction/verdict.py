"""Whether a subtraction worked: what is left of the removed part, and what is lost of the kept one."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter

from verglas.ops.projection import reconstruct_from_slices
from verglas.shapes import Volume

FloatArray = npt.NDArray[np.float64]

_FARTHEST_SHARE = 0.15
_KEPT_SHARE = 0.9


@dataclass(frozen=True, eq=False)
class Balance:
    """Of the maps before and after, against the reference.

    Parameters
    ----------
    left
        Share of the removed density that is still there.
    kept
        Share of the kept density that is still there.
    """

    left: float
    kept: float


class MapSums:
    """Sums from which the maps before and after are made; a voxel's numbers lie together."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self.sums = torch.zeros(2 * size, 2 * size, size + 1, 5, device=device)

    def maps(self, size: int) -> tuple[Volume, Volume]:
        """Reconstruct both; `size` is the side of the images."""
        before, after, weights = self.sums[..., :2], self.sums[..., 2:4], self.sums[..., 4]
        made = [
            reconstruct_from_slices(torch.view_as_complex(one.contiguous()), weights, self.size)
            * (self.size / size) ** 3
            for one in (before, after)
        ]
        return made[0], made[1]


def weigh_maps(before: Volume, after: Volume, reference: Volume, remove: Volume) -> Balance:
    """Compare what the maps before and after hold of the removed and of the kept part of a reference.

    Each map is fitted by both parts and a constant. Its noise is in both maps but not in the reference, so that the
    fits are not biased.

    Parameters
    ----------
    before, after, reference
        `(n, n, n)`.
    remove
        `(n, n, n)` from 0 to 1.
    """
    removed = reference * remove
    parts = [removed, reference - removed, torch.ones_like(reference)]
    columns = torch.stack([part.reshape(-1) for part in parts], dim=1).double()
    values = torch.stack([before.reshape(-1), after.reshape(-1)], dim=1).double()
    found = torch.linalg.lstsq(columns.T @ columns, columns.T @ values).solution
    shares = found[:2, 1] / found[:2, 0]
    return Balance(float(shares[0]), float(shares[1]))


def find_mask_shift(reference: FloatArray, remove: FloatArray) -> tuple[tuple[int, int, int], float]:
    """Find where a mask would cut through less density than it does.

    A mask that fits runs along the surface of a part, one that is shifted runs through it.

    Parameters
    ----------
    reference
        `(n, n, n)` map.
    remove
        `(n, n, n)` from 0 to 1.

    Returns
    -------
    tuple
        Voxels zyx by which the mask should move, at most 15 % of the box, and how much it cuts there, as a part of
        what it cuts now; places at which it would hold less than 90 % of the density that it holds now do not count.
    """
    density = np.clip(gaussian_filter(np.asarray(reference, float), 1.0), 0, None)
    inside = remove > 0.5
    if not inside.any() or inside.all():
        return (0, 0, 0), 1.0
    distance = np.where(inside, distance_transform_edt(inside), distance_transform_edt(~inside))
    edge = (distance <= 1.5).astype(float)
    transform = np.fft.rfftn(density)

    def slide(mask: FloatArray) -> FloatArray:
        scores: FloatArray = np.fft.irfftn(
            transform * np.fft.rfftn(mask).conj(), s=density.shape, axes=(0, 1, 2)
        )
        return scores

    cut, held = slide(edge), slide(inside.astype(float))
    reach = int(_FARTHEST_SHARE * len(density))
    steps = np.fft.fftfreq(len(density), 1 / len(density))
    near = np.sqrt(sum(axis**2 for axis in np.meshgrid(steps, steps, steps, indexing="ij"))) <= reach
    allowed = near & (held >= _KEPT_SHARE * held[0, 0, 0])
    best = np.unravel_index(int(np.argmin(np.where(allowed, cut, np.inf))), cut.shape)
    move = [int(steps[i]) for i in best]
    return (move[0], move[1], move[2]), float(cut[best] / cut[0, 0, 0])
