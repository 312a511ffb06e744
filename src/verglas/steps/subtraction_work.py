"""The particles of one part of a set: their scales, what is left when the part of the map is taken out, the proof."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from verglas.errors import UserError
from verglas.files import write_text
from verglas.steps.map_results import read_mask, read_volume

if TYPE_CHECKING:
    import torch

    from verglas.algo.subtraction.forward import Prediction, Reference
    from verglas.algo.subtraction.scales import SetFit, ShellSums
    from verglas.algo.subtraction.verdict import MapSums
    from verglas.model import ImageParticles

FloatArray = npt.NDArray[np.float64]
FloatImages = npt.NDArray[np.float32]

SAMPLE = 1000
"""Particles of a half set that gain, noise and prior are found from."""

_PROOF_PIXELS = 96
_PIXEL_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Maps:
    """Reference maps by half set (0 where there is but one), what is removed of them, and their pixel size."""

    volumes: dict[int, FloatImages]
    remove: FloatImages
    pixel_size_angstrom: float

    @property
    def size(self) -> int:
        """Side, voxels."""
        return len(self.remove)

    @property
    def whole(self) -> FloatImages:
        """Mean of the maps."""
        mean: FloatImages = np.mean(list(self.volumes.values()), axis=0, dtype=np.float32)
        return mean


def read_maps(paths: dict[int, Path], keep: Path | None, remove: Path | None) -> Maps:
    """Read the maps and the mask that says what is kept or what is removed.

    Raises
    ------
    UserError
        When the maps are no cubes of one size, or the mask is not of that size or not from 0 to 1.
    """
    volumes, pixels = {}, []
    for half, path in paths.items():
        volumes[half], pixel = read_volume(path)
        pixels.append(pixel)
    shapes = {volume.shape for volume in volumes.values()}
    shape = next(iter(shapes))
    if len(shapes) > 1 or len(set(shape)) > 1 or max(pixels) > (1 + _PIXEL_TOLERANCE) * min(pixels):
        raise UserError(
            f"the maps have shapes {sorted(shapes)} and voxels of {', '.join(f'{one:g}' for one in pixels)} Å; "
            "expected cubes of one size"
        )
    mask = read_mask(keep or remove or Path(), (shape[0], shape[1], shape[2]))
    return Maps(volumes, 1 - mask if keep else mask, pixels[0])


def check_particles(particles: "ImageParticles", maps: Maps) -> None:
    """Check that images and maps go together.

    Raises
    ------
    UserError
        When their pixels differ, or two half maps are given and a particle has no half set.
    """
    for optics in particles.optics:
        if abs(optics.pixel_size_angstrom / maps.pixel_size_angstrom - 1) > _PIXEL_TOLERANCE:
            raise UserError(
                f"the particles have pixels of {optics.pixel_size_angstrom:g} Å and the map voxels of "
                f"{maps.pixel_size_angstrom:g} Å; expected the same: `verglas rescale` changes a map"
            )
    if 0 not in maps.volumes and not np.isin(particles.half_set, (1, 2)).all():
        raise UserError(
            "with `half1` and `half2` every particle must have a half set (rlnRandomSubset of 1 or 2); "
            f"{int((~np.isin(particles.half_set, (1, 2))).sum())} have none"
        )


def make_references(maps: Maps, device: "torch.device") -> "dict[int, Reference]":
    """Transform both parts of each map."""
    import torch

    from verglas.algo.subtraction.forward import make_reference

    remove = torch.from_numpy(maps.remove).to(device)
    return {
        half: make_reference(torch.from_numpy(volume).to(device), remove)
        for half, volume in maps.volumes.items()
    }


@dataclass(frozen=True, eq=False)
class Batch:
    """Some particles: their rows, their images as centred half transforms, and what is predicted of them."""

    rows: npt.NDArray[np.int64]
    images: "torch.Tensor"
    prediction: "Prediction"


def iterate_batches(
    particles: "ImageParticles",
    rows: npt.NDArray[np.int64],
    references: "dict[int, Reference]",
    maps: Maps,
    device: "torch.device",
) -> Iterator[Batch]:
    """Read particles batch by batch and predict them."""
    import torch

    from verglas.algo.subtraction.forward import predict_images, split_batches
    from verglas.io.mrc import check_finite, read_images
    from verglas.ops.projection import images_to_slices

    for batch in split_batches(len(rows), maps.size):
        chosen = rows[batch.start : batch.stop]
        some = particles.take(chosen)
        images = check_finite(read_images(some.images), f"images of particles {chosen[0] + 1} on")
        if images.shape[1:] != (maps.size, maps.size):
            raise UserError(
                f"the particles have (y, x) = {images.shape[1:]} pixels and the map {maps.size} voxels a side; "
                "expected the same"
            )
        slices = images_to_slices(torch.from_numpy(images).to(device))
        yield Batch(chosen, slices, predict_images(some, references, maps.size))


def find_set_fits(
    particles: "ImageParticles",
    references: "dict[int, Reference]",
    maps: Maps,
    *,
    by_frequency: bool,
    path: Path,
    device: "torch.device",
) -> "dict[int, SetFit]":
    """Find what each half set has in common, from a sample; once for all parts of the job.

    It is written to `path`. Every part would write the same, so it does not matter which does.
    """
    from verglas.algo.subtraction.scales import SetFit, fit_set, join_sums, sum_shells

    if path.exists():
        told = json.loads(path.read_text(encoding="utf-8"))
        return {
            int(half): SetFit(np.array(one["gain"]), np.array(one["noise"]), one["mean"], one["deviation"])
            for half, one in told.items()
        }
    fits = {}
    for half in references:
        mine = np.flatnonzero(particles.half_set == half) if half else np.arange(len(particles))
        sample = mine[np.unique(np.linspace(0, len(mine) - 1, min(SAMPLE, len(mine))).astype(np.int64))]
        sums: list[ShellSums] = [
            sum_shells(batch.images, batch.prediction.kept + batch.prediction.removed)
            for batch in iterate_batches(particles, sample, references, maps, device)
        ]
        if sums:
            fits[half] = fit_set(join_sums(sums), by_frequency=by_frequency)
    write_text(path, json.dumps({str(half): fit.to_json() for half, fit in fits.items()}) + "\n")
    return fits


@dataclass(frozen=True, eq=False)
class Done:
    """A batch that is done.

    Parameters
    ----------
    rows
        `(b,)` of the table.
    before, after
        `(b, n, n)` images.
    values
        `(b,)` each, by name.
    """

    rows: npt.NDArray[np.int64]
    before: "torch.Tensor"
    after: "torch.Tensor"
    values: dict[str, FloatArray]


def subtract_batch(
    batch: Batch, particles: "ImageParticles", fits: "dict[int, SetFit]", proof: "MapSums"
) -> Done:
    """Take the removed part out of a batch, each particle at its own scale, and add to the proof."""
    import torch

    from verglas.algo.subtraction.scales import fit_scales, spread_gain, sum_shells
    from verglas.ops.projection import slices_to_images
    from verglas.ops.rotation import euler_to_matrices

    size, device = batch.images.shape[-2], batch.images.device
    prediction = batch.prediction
    sums = sum_shells(batch.images, prediction.kept + prediction.removed)
    halves = particles.half_set[batch.rows]
    scale = {name: np.empty(len(batch.rows)) for name in ("plain", "error", "expected")}
    gains = torch.empty(len(batch.rows), size, size // 2 + 1, device=device)
    noise = np.empty((len(batch.rows), size // 2))
    for half, fit in fits.items():
        mine = np.flatnonzero(halves == half) if half else np.arange(len(halves))
        found = fit_scales(_take(sums, mine), fit)
        for name, values in scale.items():
            values[mine] = getattr(found, name)
        gains[torch.from_numpy(mine).to(device)] = spread_gain(fit.gain, size, device)
        noise[mine] = fit.noise
    factor = torch.from_numpy(scale["expected"]).float().to(device)[:, None, None] * gains
    after = batch.images - factor * prediction.removed
    left, left_error = _find_left(after, prediction, gains, noise)
    rotations = euler_to_matrices(torch.from_numpy(particles.angles_deg[batch.rows])).float().to(device)
    _prove(proof, batch, after, rotations)
    return Done(
        batch.rows,
        slices_to_images(batch.images, size),
        slices_to_images(after, size),
        {**scale, "left": left, "left_error": left_error},
    )


def _take(sums: "ShellSums", rows: npt.NDArray[np.intp]) -> "ShellSums":
    from verglas.algo.subtraction.scales import ShellSums

    return ShellSums(sums.cross[rows], sums.model[rows], sums.image[rows], sums.pixels)


def _find_left(
    after: "torch.Tensor", prediction: "Prediction", gains: "torch.Tensor", noise: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Scale at which each image still holds the removed part, fitted together with the kept one, and its error."""
    from verglas.algo.subtraction.scales import sum_products

    kept, removed = prediction.kept * gains, prediction.removed * gains

    def weigh(first: "torch.Tensor", second: "torch.Tensor") -> FloatArray:
        total: FloatArray = (sum_products(first, second) / noise).sum(axis=1)
        return total

    both, rr, kk = weigh(kept, removed), weigh(removed, removed), weigh(kept, kept)
    determinant = np.maximum(rr * kk - both**2, 1e-9 * rr * kk + 1e-30)
    return (kk * weigh(after, removed) - both * weigh(after, kept)) / determinant, np.sqrt(kk / determinant)


def _prove(proof: "MapSums", batch: Batch, after: "torch.Tensor", rotations: "torch.Tensor") -> None:
    from verglas.ops.fft import rfft_crop

    size = batch.images.shape[-2]
    small = (proof.size, proof.size)
    unmoved = batch.prediction.ramp.conj()
    transfer = batch.prediction.transfer[:, :, : proof.size // 2 + 1]
    if proof.size < size:
        high = proof.size // 2
        import torch

        transfer = torch.cat([transfer[:, : proof.size - high], transfer[:, -high:]], dim=1)
    proof.add(
        rfft_crop(batch.images * unmoved, (size, size), small),
        rfft_crop(after * unmoved, (size, size), small),
        transfer,
        rotations,
    )


def make_proof(maps: Maps, device: "torch.device") -> "MapSums":
    """Make empty sums of maps of at most 96 voxels a side."""
    from verglas.algo.subtraction.verdict import MapSums

    return MapSums(min(_PROOF_PIXELS, maps.size - maps.size % 2), device)


def pack_proof(proof: "MapSums") -> dict[str, npt.NDArray[Any]]:
    """Turn the sums into arrays."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name in ("before", "after"):
        sums, weights = getattr(proof, name)
        arrays |= {f"{name}_sums": sums.cpu().numpy(), f"{name}_weights": weights.cpu().numpy()}
    return arrays


def unpack_proof(parts: Iterator[dict[str, npt.NDArray[Any]]], maps: Maps) -> "MapSums":
    """Add up what `pack_proof` made of each part."""
    import torch

    proof = make_proof(maps, torch.device("cpu"))
    for arrays in parts:
        for name in ("before", "after"):
            sums, weights = getattr(proof, name)
            sums += torch.from_numpy(arrays[f"{name}_sums"])
            weights += torch.from_numpy(arrays[f"{name}_weights"])
    return proof
