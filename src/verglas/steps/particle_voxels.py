"""What `pca` leaves for `cluster`: the particles' Fourier voxels, and where they lie among the components."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from verglas.errors import UserError

if TYPE_CHECKING:
    from verglas.algo.classification.masked_band import MaskedBand
    from verglas.algo.classification.subspace import Coordinates, PartParticles

PLACES = "places.npz"
_BAND = ("index", "places_xyz", "counts")
_MASKS = ("mask", "support")
_COORDINATES = ("contrast", "means", "right", "precision")
_WHAT = "places of particles, written by `pca`"


@dataclass(frozen=True, eq=False)
class Places:
    """Where the particles of a job lie among its components.

    Parameters
    ----------
    band
        Where the maps live.
    voxel_size_angstrom
        Of the mask.
    coordinates
        Of the particles, in the order of `particles.star`.
    agreement
        `(c,)` of the half sets on each component.
    voxels
        Files of the particles' Fourier voxels, relative to the job folder.
    """

    band: "MaskedBand"
    voxel_size_angstrom: float
    coordinates: "Coordinates"
    agreement: npt.NDArray[np.float64]
    voxels: tuple[str, ...]


def write_places(folder: Path, places: Places) -> None:
    """Write them into a job folder."""
    from verglas.io.arrays import write_arrays

    arrays = {name: getattr(places.band.band, name).numpy() for name in _BAND}
    arrays |= {name: getattr(places.band, name).numpy() for name in _MASKS}
    arrays |= {name: getattr(places.coordinates, name).numpy() for name in _COORDINATES}
    arrays |= {
        "agreement": places.agreement,
        "voxel_size_angstrom": np.array(places.voxel_size_angstrom),
        "voxels": np.array(places.voxels),
    }
    write_arrays(folder / PLACES, arrays)


def read_places(folder: Path) -> Places:
    """Read them from a job folder of `pca`.

    Raises
    ------
    UserError
        When it is none.
    """
    import torch

    from verglas.algo.classification.masked_band import MaskedBand
    from verglas.algo.classification.subspace import Coordinates
    from verglas.io.arrays import read_arrays
    from verglas.ops.band import Band

    path = folder / PLACES
    if not path.is_file():
        raise UserError(f"{str(folder)!r} holds no {PLACES}; expected a job folder of `pca` that has ended")
    arrays = read_arrays(path, _WHAT)
    lacking = {*_BAND, *_MASKS, *_COORDINATES, "agreement", "voxel_size_angstrom", "voxels"} - arrays.keys()
    if lacking:
        raise UserError(f"{str(path)!r} lacks {', '.join(sorted(lacking))}; expected the {_WHAT}")
    mask, support = (torch.from_numpy(arrays[name]) for name in _MASKS)
    band = MaskedBand(Band(len(mask), *(torch.from_numpy(arrays[name]) for name in _BAND)), mask, support)
    coordinates = Coordinates(*(torch.from_numpy(arrays[name]) for name in _COORDINATES))
    return Places(
        band,
        float(arrays["voxel_size_angstrom"]),
        coordinates,
        arrays["agreement"].astype(np.float64),
        tuple(map(str, arrays["voxels"])),
    )


def read_voxels(
    paths: Sequence[Path], kept: npt.NDArray[np.bool_] | None = None
) -> "Callable[[], Iterator[PartParticles]]":
    """Make a reader of the particles' Fourier voxels, one file after the other.

    Parameters
    ----------
    paths
        Files of `data` and `weights`, `(p, k)` each.
    kept
        `(n,)` which particles of all files are read; all when not given.
    """

    def read() -> "Iterator[PartParticles]":
        import torch

        from verglas.algo.classification.subspace import PartParticles
        from verglas.io.arrays import read_arrays

        first = 0
        for path in paths:
            arrays = read_arrays(path, "Fourier voxels of particles")
            data, weights = (torch.from_numpy(arrays[name]) for name in ("data", "weights"))
            count = len(data)
            if kept is not None:
                rows = torch.from_numpy(kept[first : first + count])
                data, weights = data[rows], weights[rows]
            first += count
            if len(data):
                yield PartParticles(data, weights)

    return read
