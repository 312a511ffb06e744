"""Straight and bent membranes found by the Radon transform along lines and parabolas."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from verglas.algo.membranes.curves import Arc
from verglas.algo.membranes.profiles import bilayer_kernel

FloatArray = npt.NDArray[np.float64]

_MOST = 4
_EDGE_PX = 4.0
_STEP_DEG = 3.0
_BENDS = 9
_STRONGEST_BEND = 0.16
"""Largest sagitta looked for, of the image's side."""


@dataclass(frozen=True)
class Find:
    """A membrane that a Radon transform shows: its arc, distance of leaflets, what it explains of the image."""

    arc: Arc
    distance: float
    score: float
    sign: int


def soft_window(shape: tuple[int, int], radius: float) -> FloatArray:
    """Return a disc `(y, x)` about the image's centre, 1 within and 0 beyond, with a cosine edge."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    r = np.hypot(y - shape[0] // 2, x - shape[1] // 2)
    return np.asarray(0.5 + 0.5 * np.cos(np.pi * np.clip((r - radius) / _EDGE_PX + 0.5, 0, 1)))


def find_membranes(image: FloatArray, weight: FloatArray, distances: FloatArray) -> list[Find]:
    """Find where lines or parabolas meet two leaflets.

    For each angle and bend the image is averaged along parallel curves, and the averages are compared with two
    Gaussians at each distance, of either sign. What is returned are the strongest places, apart from each other.

    Parameters
    ----------
    image
        `(y, x)`.
    weight
        `(y, x)` of each pixel; 0 where there is no image.
    distances
        `(k,)` between leaflets, pixels.
    """
    rows, columns = np.nonzero(weight > 0.02)
    w = weight[rows, columns]
    mean = float((w * image[rows, columns]).sum() / w.sum())
    values = (image[rows, columns] - mean) * w
    y, x = rows - image.shape[0] // 2, columns - image.shape[1] // 2
    reach = int(np.ceil(np.hypot(*image.shape) / 2)) + 2
    size = 2 * reach + 1
    half = min(image.shape) / 2
    bends = np.linspace(-1, 1, _BENDS) * _STRONGEST_BEND * 2 * half / (half**2 / 2)
    kernels = [_normalise_kernel(distance) for distance in distances]
    found: list[tuple[float, float, float, float, float, int]] = []
    for theta in np.arange(0, 180, _STEP_DEG):
        sine, cosine = np.sin(np.deg2rad(theta)), np.cos(np.deg2rad(theta))
        across, along = sine * y - cosine * x, cosine * y + sine * x
        for kappa in bends:
            place = np.rint(across + kappa / 2 * along**2).astype(np.int64) + reach
            inside = (place >= 0) & (place < size)
            sums = np.asarray(np.bincount(place[inside], values[inside], minlength=size), float)
            counts = np.asarray(np.bincount(place[inside], w[inside], minlength=size), float)
            for kernel, distance in zip(kernels, distances, strict=True):
                best = _match(sums, counts, kernel)
                place_best = int(np.argmax(np.abs(best)))
                score = float(best[place_best])
                found.append(
                    (
                        abs(score),
                        theta,
                        place_best - reach,
                        float(kappa),
                        float(distance),
                        1 if score > 0 else -1,
                    )
                )
    found.sort(reverse=True)
    return _keep_apart(found, image.shape)


def _normalise_kernel(distance: float) -> FloatArray:
    reach = int(np.ceil(1.5 * distance))
    return bilayer_kernel(np.arange(-reach, reach + 1).astype(float), distance)


def _match(sums: FloatArray, counts: FloatArray, kernel: FloatArray) -> FloatArray:
    """Return at each place the square root of what the kernel explains of the sums, with the sign of the match."""
    # With c pixels a bin, the mean m = s / c has weight c: explained is (Σ k s')² / Σ k² c, s' = s - local mean * c.
    box = np.ones(len(kernel))
    local = np.convolve(sums, box, "same") / np.maximum(np.convolve(counts, box, "same"), 1e-9)
    right = np.convolve(sums, kernel[::-1], "same") - local * np.convolve(counts, kernel[::-1], "same")
    energy = np.convolve(counts, (kernel**2)[::-1], "same")
    full = energy > 0.25 * energy.max()
    return np.asarray(np.where(full, right / np.sqrt(np.maximum(energy, 1e-9)), 0.0))


def _keep_apart(
    found: list[tuple[float, float, float, float, float, int]], shape: tuple[int, ...]
) -> list[Find]:
    kept: list[Find] = []
    for score, theta, place, kappa, distance, sign in found:
        arc = Arc((0.0, 0.0), theta, kappa)
        centre = np.array([shape[0] // 2, shape[1] // 2]) + place * arc.normal
        one = Find(Arc((float(centre[0]), float(centre[1])), theta, kappa), distance, score, sign)
        if all(_differs(one, other, shape) for other in kept):
            kept.append(one)
        if len(kept) == _MOST:
            break
    return kept


def _differs(one: Find, other: Find, shape: tuple[int, ...]) -> bool:
    path = one.arc.trace(min(shape) / 4, 4.0)
    distance = np.abs(other.arc.locate(path)[0])
    return bool(distance.mean() > 0.35 * other.distance)
