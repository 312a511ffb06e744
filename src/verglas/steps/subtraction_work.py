"""The particles of one part of a set: their scales, what is left when the part of the map is taken out, the proof."""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
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

    from verglas.algo.subtraction.forward import OpticsTables, Reference
    from verglas.algo.subtraction.scales import SetFit
    from verglas.algo.subtraction.verdict import MapSums
    from verglas.io.mrc import MrcWriter
    from verglas.model import ImageParticles

FloatArray = npt.NDArray[np.float64]
FloatImages = npt.NDArray[np.float32]

SAMPLE = 1000
"""Particles of a half set that gain, noise and prior are found from."""

_PROOF_PIXELS = 64
_PROOF_PARTICLES = 2000
_BATCH_PIXELS = 1 << 22
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


@dataclass(frozen=True, eq=False)
class Model:
    """All that images are predicted from."""

    reference: "Reference"
    optics: "OpticsTables"
    size: int
    device: "torch.device"


def make_model(particles: "ImageParticles", maps: Maps, device: "torch.device") -> Model:
    """Transform both parts of each map, and tell what the particles of an optics group have in common."""
    import torch

    from verglas.algo.subtraction.forward import describe_optics, make_reference

    volumes = {half: torch.from_numpy(volume).to(device) for half, volume in maps.volumes.items()}
    reference = make_reference(volumes, torch.from_numpy(maps.remove).to(device))
    return Model(reference, describe_optics(particles, maps.size, device), maps.size, device)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some particles.

    Parameters
    ----------
    rows
        `(b,)` of the table.
    images
        `(b, n, n)`.
    slices
        `(b, n, n // 2 + 1)` their half transforms, the origin in pixel 0.
    axes, removed, change
        Of `ops.kernels.parted_slices`: the pose, the removed part in each image, what a slice is multiplied by.
    products
        `(b, 6, s)` sums over shells.
    """

    rows: npt.NDArray[np.int64]
    images: "torch.Tensor"
    slices: "torch.Tensor"
    axes: "torch.Tensor"
    removed: "torch.Tensor"
    change: "torch.Tensor"
    products: FloatArray


def iterate_batches(
    particles: "ImageParticles", rows: npt.NDArray[np.int64], model: Model
) -> Iterator[Batch]:
    """Read particles batch by batch, the next while one is worked on, and predict them."""
    import torch

    from verglas.algo.subtraction.forward import describe_views
    from verglas.ops.kernels.parted_slices import predict

    step = max(1, _BATCH_PIXELS // model.size**2)
    parts = [slice(start, start + step) for start in range(0, len(rows), step)]
    every = describe_views(particles.take(rows), model.reference, model.optics, model.size)
    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(_read_batch, particles, rows[part], model.size) for part in parts[:1]]
        for number, part in enumerate(parts, 1):
            images = coming.pop().result()
            coming = [
                pool.submit(_read_batch, particles, rows[one], model.size) for one in parts[number:][:1]
            ]
            on_device = torch.from_numpy(images).to(model.device)
            slices = torch.fft.rfft2(on_device)
            views = every.take(part)
            removed, change, products = predict(model.reference.parts, model.reference.reach, views, slices)
            sums = products.cpu().numpy()
            yield Batch(rows[part], on_device, slices, views.axes, removed, change, sums)
            # The next takes their memory.
            del images, on_device, slices, removed, change


def _read_batch(particles: "ImageParticles", rows: npt.NDArray[np.int64], size: int) -> FloatImages:
    from verglas.io.mrc import check_finite, read_images

    images = check_finite(
        read_images([particles.images[row] for row in rows]), f"images of particles {rows[0] + 1} on"
    )
    if images.shape[1:] != (size, size):
        raise UserError(
            f"the particles have (y, x) = {images.shape[1:]} pixels and the map {size} voxels a side; "
            "expected the same"
        )
    return images


def find_set_fits(
    particles: "ImageParticles", maps: Maps, model: Model, *, by_frequency: bool, path: Path
) -> "dict[int, SetFit]":
    """Find what each half set has in common, from a sample; once for all parts of the job.

    It is written to `path`, with what it was made from: a job that was killed may go on with another map. Every part
    would write the same, so it does not matter which does.
    """
    from verglas.algo.subtraction.scales import SetFit, compare_whole, fit_set

    source = _digest(particles, maps)
    told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if told.get("made_from") == source:
        return {
            int(half): SetFit(np.array(one["gain"]), np.array(one["noise"]), one["mean"], one["deviation"])
            for half, one in told["sets"].items()
        }
    fits = {}
    for half in model.reference.halves:
        mine = np.flatnonzero(particles.half_set == half) if half else np.arange(len(particles))
        sample = mine[np.unique(np.linspace(0, len(mine) - 1, min(SAMPLE, len(mine))).astype(np.int64))]
        found = [batch.products for batch in iterate_batches(particles, sample, model)]
        if found:
            sums = compare_whole(np.concatenate(found), model.size)
            fits[half] = fit_set(sums, by_frequency=by_frequency)
    sets = {str(half): fit.to_json() for half, fit in fits.items()}
    write_text(path, json.dumps({"made_from": source, "sets": sets}) + "\n")
    return fits


def _digest(particles: "ImageParticles", maps: Maps) -> str:
    """Digest of maps, mask, poses and transfer functions, and of the stacks' sizes and times."""
    digest = hashlib.blake2b(digest_size=16)
    tables = (particles.angles_deg, particles.origins_angstrom, particles.ctf, particles.half_set)
    for array in (*maps.volumes.values(), maps.remove, *tables):
        digest.update(np.ascontiguousarray(array).tobytes())
    for path in dict.fromkeys(image.path for image in particles.images):
        digest.update(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    digest.update(repr((particles.optics, particles.aberrations)).encode())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Done:
    """A batch that is done.

    Parameters
    ----------
    after
        `(b, n, n)` images.
    slices
        `(b, n, n // 2 + 1)` their half transforms.
    values
        `(b,)` each, by name.
    """

    after: "torch.Tensor"
    slices: "torch.Tensor"
    values: dict[str, FloatArray]


def subtract_batch(batch: Batch, particles: "ImageParticles", fits: "dict[int, SetFit]") -> Done:
    """Take the removed part out of a batch, each particle at its own scale."""
    import torch

    from verglas.algo.subtraction.scales import (
        ShellSums,
        compare_whole,
        find_left,
        fit_scales,
        measure_agreement,
    )
    from verglas.ops.kernels.parted_slices import subtract

    size = batch.images.shape[-1]
    sums = compare_whole(batch.products, size)
    halves = particles.half_set[batch.rows]
    values = {name: np.empty(len(batch.rows)) for name in ("plain", "error", "expected", "agreement")}
    values |= {name: np.empty(len(batch.rows)) for name in ("left", "left_error")}
    factors = torch.zeros(len(batch.rows), size // 2 + 1)
    for half, fit in fits.items():
        mine = np.flatnonzero(halves == half) if half else np.arange(len(halves))
        own = ShellSums(sums.cross[mine], sums.model[mine], sums.image[mine], sums.pixels)
        found = fit_scales(own, fit)
        left = find_left(batch.products[mine], found.expected, fit.gain, fit.noise)
        agreement = measure_agreement(own, fit.gain, fit.noise)
        told = (found.plain, found.error, found.expected, agreement, *left)
        for name, one in zip(values, told, strict=True):
            values[name][mine] = one
        gain = fit.gain.copy()
        gain[0] = gain[1]
        factors[torch.from_numpy(mine), : size // 2] = torch.from_numpy(
            found.expected[:, None] * gain
        ).float()
    values["offset"] = _find_offsets(batch, factors[:, 0].double().numpy())
    after = subtract(batch.slices, batch.removed, factors.to(batch.slices.device))
    return Done(torch.fft.irfft2(after, s=(size, size)), after, values)


def _find_offsets(batch: Batch, scale: FloatArray) -> FloatArray:
    """Background of each image: its mean, less that of what the map predicts."""
    total = batch.slices[:, 0, 0].real.double().cpu().numpy()
    products = batch.products[:, :, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        predicted = np.where(total != 0, (products[:, 1] + products[:, 2]) / total, 0.0)
    return (total - scale * predicted) / float(np.prod(batch.images.shape[-2:]))


@contextmanager
def write_behind(writer: "MrcWriter") -> "Iterator[Callable[[FloatImages], None]]":
    """Give a function that writes images in a thread while the next are computed, one batch at a time."""
    with ThreadPoolExecutor(1) as pool:
        waiting: list[Future[None]] = []

        def write_through(images: FloatImages) -> None:
            writer.write(images)
            writer.settle()

        def write(images: FloatImages) -> None:
            if waiting:
                waiting.pop().result()
            waiting.append(pool.submit(write_through, images))

        yield write
        if waiting:
            waiting.pop().result()


def choose_proof(count: int) -> npt.NDArray[np.bool_]:
    """Tell which of all particles the maps of the proof are made from: 2000 at most, spread over the table."""
    chosen = np.zeros(count, dtype=bool)
    chosen[np.linspace(0, count - 1, min(count, _PROOF_PARTICLES)).astype(np.int64)] = True
    return chosen


def add_proof(proof: "MapSums", batch: Batch, done: Done, chosen: npt.NDArray[np.bool_]) -> None:
    """Insert those of a batch that are chosen, before and after, into the maps of the proof."""
    import torch

    from verglas.ops.kernels.parted_slices import insert_pair

    rows = torch.from_numpy(np.flatnonzero(chosen[batch.rows])).to(batch.slices.device)
    insert_pair(batch.slices, done.slices, batch.change, batch.axes, proof.sums, rows)


def make_proof(maps: Maps, device: "torch.device") -> "MapSums":
    """Make empty sums of maps of at most 64 voxels a side."""
    from verglas.algo.subtraction.verdict import MapSums

    return MapSums(min(_PROOF_PIXELS, maps.size - maps.size % 2), device)


def add_up_proof(parts: Iterator[dict[str, npt.NDArray[Any]]], maps: Maps) -> "MapSums":
    """Add up the sums of each part."""
    import torch

    proof = make_proof(maps, torch.device("cpu"))
    for arrays in parts:
        proof.sums += torch.from_numpy(arrays["proof"])
    return proof
