"""Patches of the specimen's plane in all views: cut, predicted from each other, and how far each has moved."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from verglas.algo.tilt_alignment.geometry import ViewGeometry, project_points, view_matrices
from verglas.algo.tilt_alignment.patch_fit import PatchTracks
from verglas.algo.tilt_alignment.prediction import (
    Predictor,
    information_matrix,
    make_predictor,
    plane_frequencies,
    predict_views,
)
from verglas.errors import UserError
from verglas.ops.interpolation import affine_transform_images

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.floating]

LEAST_COVERED = 0.6
"""A patch is measured in views that show at least this fraction of it."""

_RINGS = 24
_SHARE_RINGS = 16
_HIGHEST = 0.42
_LOWEST_PERIODS = 1.5
_LEAST_SHARE = 0.02
_FEWEST_COMPARED = 8
_THINNEST_THICKEST = (0.06, 2.0)


@dataclass(frozen=True, eq=False)
class Layer:
    """Where the patches lie: squares in the plane z = offset + slope · (x, y) through the specimen.

    Parameters
    ----------
    centres_px
        `(b, 3)` xyz of their middles.
    slope
        Rise of the plane along x and y.
    size
        Side of a patch, pixels.
    thickness_px
        Of the specimen.
    """

    centres_px: FloatArray
    slope: tuple[float, float]
    size: int
    thickness_px: float


@dataclass(frozen=True, eq=False)
class Displacements:
    """Places of patches.

    Parameters
    ----------
    tracks
        Places in the views, and what is known of their errors.
    steps_px
        `(b, n, 2)` how far each lies from where the others say, before their own errors are taken into account.
    scores
        `(b, n)` correlation with what was predicted.
    highest
        Frequency, cycles a pixel, beyond which neighbouring views share nothing.
    """

    tracks: PatchTracks
    steps_px: FloatArray
    scores: FloatArray
    highest: float


def whiten_view(image: Image) -> npt.NDArray[np.float32]:
    """Bring all frequencies from a coarse limit to near Nyquist to the same power, and cut off what stands out.

    Parameters
    ----------
    image
        `(y, x)`.
    """
    flat = image - gaussian_filter(image.astype(np.float32), max(image.shape) / 16, mode="nearest")
    limit = 5 * 1.4826 * float(np.median(np.abs(flat))) + 1e-12
    flat = np.clip(flat, -limit, limit)
    y, x = flat.shape
    transform = np.fft.rfft2(flat)
    frequency = np.hypot(np.fft.fftfreq(y)[:, None], np.fft.rfftfreq(x)[None])
    rings = np.minimum((frequency * 4 * _RINGS).astype(int), 2 * _RINGS)
    power = np.bincount(rings.ravel(), (np.abs(transform) ** 2).ravel()) / np.bincount(rings.ravel())
    middles = (np.arange(len(power)) + 0.5) / (4 * _RINGS)
    amplitude = np.sqrt(np.interp(frequency, middles, power)) + 1e-12
    band = 1 / (1 + np.exp((frequency - _HIGHEST) / 0.015))
    white = np.fft.irfft2(transform * band / amplitude, flat.shape)
    return np.asarray(white / white.std(), dtype=np.float32)


def plane_matrices(geometry: ViewGeometry, slope: tuple[float, float]) -> tuple[FloatArray, FloatArray]:
    """`(n, 2, 2)` from the plane to the view, and `(n, 2)` how far a rise by one appears moved in the plane."""
    matrices = view_matrices(geometry)
    plane = matrices[:, :, :2] + matrices[:, :, 2:] * np.array(slope)
    return plane, np.linalg.solve(plane, matrices[:, :, 2:])[..., 0]


def cut_layer(
    views: Sequence[npt.NDArray[np.float32]], geometry: ViewGeometry, layer: Layer
) -> tuple[Tensor, Tensor]:
    """Read all patches from all views, in the plane of the specimen.

    Returns
    -------
    tuple
        `(b, n, size, size)` windowed patches, and `(b, n)` the fraction of each that lies within the view.
    """
    plane, _ = plane_matrices(geometry, layer.slope)
    places = project_points(geometry, layer.centres_px)
    window = make_window(layer.size)
    patches = torch.zeros(len(places), len(geometry), layer.size, layer.size)
    covered = torch.zeros(len(places), len(geometry))
    for view, image in enumerate(views):
        # The content of the view is moved so that each patch comes to the middle and its plane lies flat.
        inverse = np.linalg.inv(plane[view])
        maps = torch.eye(3, dtype=torch.float64).repeat(len(places), 1, 1)
        maps[:, :2, :2] = torch.from_numpy(inverse)
        maps[:, :2, 2] = torch.from_numpy(-places[:, view] @ inverse.T)
        out = (layer.size, layer.size)
        patches[:, view] = affine_transform_images(
            torch.from_numpy(image), maps, order="cubic", out_shape=out
        )
        covered[:, view] = torch.from_numpy(_coverage(plane[view], places[:, view], layer.size, image.shape))
    return patches * window, covered


def _coverage(plane: FloatArray, places: FloatArray, size: int, shape: tuple[int, ...]) -> FloatArray:
    """Fraction of the middle of each patch that lies within the view."""
    steps = np.linspace(-0.375, 0.375, 9) * size
    u = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2) @ plane.T
    at = places[:, None] + u
    low = -np.array(shape[::-1]) // 2
    high = low + np.array(shape[::-1])
    return np.asarray(((at > low) & (at < high - 1)).all(axis=-1).mean(axis=1))


def make_window(size: int) -> Tensor:
    """`(size, size)` cosine window that falls over the outer quarter on each side."""
    ramp = (torch.minimum(torch.arange(size), size - 1 - torch.arange(size)) + 0.5) / (size / 4)
    edge = 0.5 - 0.5 * torch.cos(torch.pi * ramp.clamp(max=1))
    return edge[:, None] * edge


def measure_layer(
    views: Sequence[npt.NDArray[np.float32]],
    geometry: ViewGeometry,
    layer: Layer,
    reach_px: float,
    *,
    anchor: float,
) -> Displacements:
    """Measure how far each patch lies from where the geometry says, against what all other views predict.

    Parameters
    ----------
    views
        n views from `whiten_view`.
    geometry
        So far.
    layer
        The patches.
    reach_px
        Longest displacement that is looked for.
    anchor
        What is known of the middle of a track, beside what is known of a view by the others: little when the
        geometry is good.

    Raises
    ------
    UserError
        When neighbouring views have nothing in common.
    """
    patches, covered = cut_layer(views, geometry, layer)
    good = covered >= LEAST_COVERED
    transforms = torch.fft.rfft2(patches) * good[..., None, None]
    plane, tau = plane_matrices(geometry, layer.slope)
    smear = torch.from_numpy(tau * layer.thickness_px).float()
    rings = image_frequencies(plane, layer.size)
    shares = estimate_share(transforms, smear, rings)
    if not (shares > 0).any():
        raise UserError(
            "neighbouring views do not show the same at any frequency; expected a specimen with structure"
        )
    predictor = make_predictor(smear, spread_share(shares, rings, layer.size), layer.size)
    predicted = predict_views(transforms, predictor)
    scores = torch.fft.irfft2((transforms * predicted.conj()).contiguous(), s=(layer.size,) * 2)
    steps, heights = find_displacements(scores, reach_px)
    energy = _total_power(transforms) * _total_power(predicted)
    quality = (heights * layer.size**2 / energy.sqrt().clamp(min=1e-12)).numpy()
    found = steps.numpy().astype(float)
    found[~good.numpy()] = np.nan
    found[_stand_out(found)] = np.nan
    moved, roots = settle_displacements(found, predictor, anchor)
    places = project_points(geometry, layer.centres_px) + np.einsum("vij,bvj->bvi", plane, moved)
    inverse = np.linalg.inv(plane)
    count = len(plane)
    roots = np.einsum("bavi,vij->bavj", roots.reshape(*roots.shape[:2], count, 2), inverse)
    tracks = PatchTracks(places, roots.reshape(len(roots), 2 * count, 2 * count))
    highest = 0.5 * float((shares > 0).any(axis=0).mean())
    return Displacements(tracks, np.einsum("vij,bvj->bvi", plane, found), quality, highest)


def choose_thickness(views: Sequence[npt.NDArray[np.float32]], geometry: ViewGeometry, layer: Layer) -> float:
    """Thickness, pixels, under which what the views share is likeliest."""
    patches, covered = cut_layer(views, geometry, layer)
    whole = torch.from_numpy(np.asarray((covered >= LEAST_COVERED).all(dim=1)))
    if not whole.any():
        return layer.thickness_px
    transforms = torch.fft.rfft2(patches[whole])
    plane, tau = plane_matrices(geometry, layer.slope)
    rings = image_frequencies(plane, layer.size)
    inside = torch.from_numpy((rings < _HIGHEST) & (rings > _LOWEST_PERIODS / layer.size))
    power = ((transforms.abs() ** 2) * inside).sum(dim=(0, 2, 3)) / (inside.sum(dim=(1, 2)) * len(transforms))
    transforms = transforms / power.sqrt()[:, None, None] * inside
    used = inside.all(dim=0)
    best, highest = layer.thickness_px, -np.inf
    for thickness in layer.size * np.geomspace(*_THINNEST_THICKEST, 11):
        smear = torch.from_numpy(tau * thickness).float()
        share = spread_share(estimate_share(transforms, smear, rings), rings, layer.size)
        predictor = make_predictor(smear, share, layer.size)
        precision = predictor.precision[used]
        chosen = transforms.permute(2, 3, 0, 1)[used]
        quadratic = torch.einsum(
            "kbu,kuv,kbv->kb", chosen.conj(), precision.to(chosen.dtype), chosen
        ).real.mean()
        likelihood = float(torch.logdet(precision).mean() - quadratic)
        if likelihood > highest:
            best, highest = float(thickness), likelihood
    return best


def _total_power(transforms: Tensor) -> Tensor:
    """Sum of squares over whole transforms of which half are given."""
    power = transforms.real**2 + transforms.imag**2
    return 2 * power.sum(dim=(-2, -1)) - power[..., 0].sum(dim=-1)


def image_frequencies(plane: FloatArray, size: int) -> FloatArray:
    """`(n, size, size // 2 + 1)` length in the image of each frequency of the plane, cycles a pixel."""
    inverse = np.linalg.inv(plane)
    places = np.einsum("yxi,nij->nyxj", plane_frequencies(size).numpy(), inverse)
    return np.asarray(np.linalg.norm(places, axis=-1))


def estimate_share(transforms: Tensor, smear: Tensor, rings: FloatArray) -> FloatArray:
    """Fraction of the views' power that is signal, from the correlation of neighbours.

    Parameters
    ----------
    transforms
        `(b, n, y, x // 2 + 1)`; zero where there is no view.
    smear
        `(n, 2)`, see `make_predictor`.
    rings
        `(n, y, x // 2 + 1)` frequencies in the views.

    Returns
    -------
    ndarray
        `(n, 16)`: a curve of frequency that all share, times a number a view.
    """
    count = _SHARE_RINGS
    order = torch.argsort(smear[:, 0])
    first, second = order[:-1], order[1:]
    frequency = plane_frequencies(transforms.shape[-2])
    coherence = torch.sinc(torch.einsum("yxi,ni->nyx", frequency, smear[first] - smear[second]))
    power = transforms.real**2 + transforms.imag**2
    there = power.sum(dim=(-2, -1), keepdim=True) > 0
    both = there[:, first] & there[:, second]
    cross = ((transforms[:, first] * transforms[:, second].conj()).real * coherence).sum(dim=0)
    own = ((power[:, first] + power[:, second]) / 2 * coherence**2 * both).sum(dim=0)
    index = np.minimum((rings[first] * 2 * count).astype(int), count)
    pairs = len(first)
    bins = (index + (count + 1) * np.arange(pairs)[:, None, None]).ravel()
    top, bottom = (
        np.bincount(bins, values.numpy().ravel(), pairs * (count + 1)).reshape(pairs, -1)[:, :count]
        for values in (cross, own)
    )
    share = top.sum(axis=0) / np.maximum(bottom.sum(axis=0), 1e-12)
    share = np.clip(np.convolve(np.pad(share, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid"), 0.0, 0.95)
    # Beyond the first ring in which nothing is shared there is noise, which must not be followed.
    lacking = (share < _LEAST_SHARE) & (np.arange(count) >= share.argmax())
    share[np.logical_or.accumulate(lacking)] = 0.0
    # A pair shares the geometric mean of what is signal in its two views.
    strength = (top * share).sum(axis=1) / np.maximum((bottom * share**2).sum(axis=1), 1e-12)
    padded = np.pad(np.log(np.clip(strength, 0.1, 2.0)), 1, mode="edge")
    views = np.empty(len(order))
    views[order.numpy()] = np.exp((padded[1:] + padded[:-1]) / 2)
    return np.asarray(np.clip(views[:, None] * share, 0.0, 0.95))


def spread_share(share: FloatArray, rings: FloatArray, size: int) -> Tensor:
    """`(n, y, x // 2 + 1)` share of each view at each frequency of the plane; zero outside the band that is used."""
    middles = (np.arange(share.shape[1]) + 0.5) / (2 * share.shape[1])
    known = np.stack([np.interp(ring, middles, row) for ring, row in zip(rings, share, strict=True)])
    inside = (rings < _HIGHEST) & (rings > _LOWEST_PERIODS / size)
    return torch.from_numpy(np.where(inside, known, 0.0)).float()


def find_displacements(scores: Tensor, reach_px: float) -> tuple[Tensor, Tensor]:
    """Highest place of maps `(..., y, x)`, no displacement at index 0, within a circle; xy and heights."""
    size = scores.shape[-1]
    reach = min(int(reach_px) + 1, size // 2 - 1)
    steps = torch.arange(-reach, reach + 1)
    window = scores[..., steps[:, None] % size, steps[None] % size]
    inside = (steps[:, None] ** 2 + steps**2) <= max(reach_px, 1.0) ** 2
    searched = torch.where(inside, window, -torch.inf)
    heights, index = searched.flatten(-2).max(dim=-1)
    y, x = steps[index // len(steps)], steps[index % len(steps)]
    flat = scores.flatten(-2)

    def at(dy: int, dx: int) -> Tensor:
        where = ((y + dy) % size) * size + (x + dx) % size
        return flat.gather(-1, where[..., None])[..., 0]

    middle = at(0, 0)
    moved = []
    for place, before, after in ((x, at(0, -1), at(0, 1)), (y, at(-1, 0), at(1, 0))):
        bend = before - 2 * middle + after
        moved.append(place + torch.where(bend < 0, 0.5 * (before - after) / bend, 0.0).clamp(-1, 1))
    return torch.stack(moved, dim=-1), heights


def _stand_out(steps: FloatArray) -> npt.NDArray[np.bool_]:
    """`(b, n)` whether a step is far from those of the other patches in the view."""
    if len(steps) < _FEWEST_COMPARED:
        return np.zeros(steps.shape[:2], bool)
    known = np.isfinite(steps[..., 0])
    middle = np.zeros((steps.shape[1], 2))
    spread = np.zeros(steps.shape[1])
    for view in range(steps.shape[1]):
        if known[:, view].any():
            middle[view] = np.median(steps[known[:, view], view], axis=0)
            spread[view] = np.median(np.linalg.norm(steps[known[:, view], view] - middle[view], axis=1))
    off = np.linalg.norm(np.nan_to_num(steps) - middle, axis=-1)
    return np.asarray(known & (off > 5 * np.maximum(spread, 0.1)))


def settle_displacements(
    steps: FloatArray, predictor: Predictor, anchor: float
) -> tuple[FloatArray, FloatArray]:
    """Displacements from the steps against predictions whose views are displaced themselves.

    One step of Newton on the likelihood of all places: the steps times the information on each view alone are its
    gradient.

    Returns
    -------
    tuple
        `(b, n, 2)` displacements, and `(b, 2 n, 2 n)` matrices R with R^T R the information on them.
    """
    information = information_matrix(predictor).double().numpy()
    count = steps.shape[1]
    moved, roots = np.full_like(steps, np.nan), np.zeros((len(steps), 2 * count, 2 * count))
    patterns, rows = np.unique(np.isfinite(steps[..., 0]), axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        views = np.flatnonzero(pattern)
        if len(views) < 2:
            continue
        keep = np.flatnonzero(np.repeat(pattern, 2))
        # Links to views that are not there are cut.
        links = np.where(_same_block(len(views)), 0.0, information[np.ix_(keep, keep)])
        alone = -_block_sums(links)
        matrix = links + alone
        matrix += anchor * np.trace(matrix) / len(matrix) * np.eye(len(matrix))
        values, vectors = np.linalg.eigh(matrix)
        root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
        members = np.flatnonzero(rows.ravel() == number)
        # A step that all views share says nothing.
        blocks = alone.reshape(len(views), 2, len(views), 2).sum(axis=2)
        weighted = np.einsum("vij,bvj->bi", blocks, steps[members][:, views])
        common = np.linalg.solve(blocks.sum(axis=0), weighted.T).T
        apart = steps[members][:, views] - common[:, None]
        gradient = apart.reshape(len(members), -1) @ alone
        solved = np.linalg.solve(matrix, gradient.T).T
        moved[np.ix_(members, views)] = solved.reshape(len(members), -1, 2)
        roots[np.ix_(members, keep, keep)] = root
    return moved, roots


def _same_block(count: int) -> npt.NDArray[np.bool_]:
    return np.kron(np.eye(count), np.ones((2, 2))).astype(bool)


def _block_sums(links: FloatArray) -> FloatArray:
    """Block-diagonal matrix of the sums over each view's links."""
    count = len(links) // 2
    blocks = links.reshape(count, 2, count, 2).sum(axis=2)
    whole = np.zeros((count, 2, count, 2))
    whole[np.arange(count), :, np.arange(count), :] = blocks
    return whole.reshape(2 * count, 2 * count)
