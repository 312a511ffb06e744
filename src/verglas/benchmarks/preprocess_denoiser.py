"""The denoiser on simulated micrographs beside the best linear filter and total variation, against the truth."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from verglas.algo.micrograph.denoiser import denoise_image
from verglas.algo.micrograph.denoiser_training import judge_denoiser, start_denoiser, train_denoiser
from verglas.algo.micrograph.total_variation import denoise_variation
from verglas.algo.simulation.phantoms import make_blob_phantom, make_demo_ribosome
from verglas.algo.simulation.specimen import Population, Species, build_specimen
from verglas.algo.simulation.views import Conditions, View, expect_view
from verglas.benchmarks.harness import Figure
from verglas.exec.threads import limit_threads
from verglas.model import Optics

Array = npt.NDArray[np.float32]

_PIXEL = 4.0
_EXPOSURE = 20.0
"""Electrons per Å² of a half."""


@dataclass(frozen=True, eq=False)
class Pair:
    """What a perfect counter would see in a half, and two halves that were counted; all `(y, x)`."""

    truth: Array
    odd: Array
    even: Array


def make_pair(size: int, seed: int) -> Pair:
    """Simulate ribosomes, smaller molecules and vesicles in 60 nm of ice at 1 to 2.5 µm of defocus."""
    side = size * _PIXEL
    rng = np.random.default_rng([seed, 9])
    share = (side / 4096.0) ** 2
    ribosomes = Population(Species("ribosome", make_demo_ribosome(6.0)), round(60 * share))
    blob = make_blob_phantom(400, 50.0, seed=3, sigma_angstrom=2.5)
    specimen = build_specimen(
        f"pair_{seed}",
        (side, side, 600.0),
        [ribosomes, Population(Species("blob", blob), round(150 * share))],
        seed=seed,
        vesicle_radii_angstrom=(250.0, 180.0) if size >= 1024 else (180.0,),
        grain_angstrom=_PIXEL,
    )
    defocus = rng.uniform(10_000, 25_000)
    view = View(np.eye(4), defocus + 100, defocus - 100, 20.0, exposure_e_per_a2=2 * _EXPOSURE)
    conditions = Conditions(b_factor_a2=60.0, layer_angstrom=200.0)
    expected = _EXPOSURE * _PIXEL**2 * expect_view(specimen, view, (size, size), Optics(_PIXEL), conditions)
    odd, even = (rng.poisson(expected).astype(np.float32) for _ in range(2))
    return Pair(expected.astype(np.float32), odd, even)


def compare_denoisers(quick: bool) -> Iterator[Figure]:
    """Train on halves alone, and compare on micrographs that were not learned from."""
    size, learned, judged, steps = (384, 2, 1, 60) if quick else (1024, 6, 2, 1200)
    made = [make_pair(size, seed) for seed in range(learned + judged)]
    pairs = [(torch.from_numpy(one.odd), torch.from_numpy(one.even)) for one in made[:learned]]
    denoiser = start_denoiser(pairs, _PIXEL, seed=0)
    with limit_threads(1):
        train_denoiser(denoiser, pairs, steps=steps, rate=0.002, seed=0)
    left: dict[str, list[float]] = {"network": [], "linear": [], "variation": []}
    slopes = []
    for one in made[learned:]:
        whole = torch.from_numpy(one.odd + one.even)
        found = denoise_image(whole, denoiser, _PIXEL).numpy()
        left["network"].append(_measure(found, one.truth))
        left["linear"].append(_measure(_filter_best(whole.numpy(), one.truth), one.truth))
        left["variation"].append(
            min(_measure(denoise_variation(whole, count).numpy(), one.truth) for count in (20, 50, 100))
        )
        slopes.append(_measure_slope(found, one.truth))
    network, linear, variation = (float(np.mean(values)) for values in left.values())
    yield Figure(
        "preprocess.denoiser_left",
        network,
        f"RMS difference from the noise-free image over its own RMS, {judged} micrographs not learned from, "
        f"{steps} steps",
        target="below the best linear filter's, which knows the truth",
        holds=network < linear,
        peer="that filter",
        peer_value=linear,
        ratio=linear / network,
    )
    yield Figure(
        "preprocess.denoiser_against_variation",
        network,
        "the same, beside total variation of 20, 50 or 100 steps, whichever is best",
        target="" if quick else "below it",
        holds=None if quick else network < variation,
        peer="`preprocess --denoise`",
        peer_value=variation,
        ratio=variation / network,
    )
    slope = float(np.mean(slopes))
    yield Figure("preprocess.denoiser_slope", slope, "of the denoised image on the noise-free one; 1 is best")
    judgement = judge_denoiser(denoiser, pairs)
    yield Figure(
        "preprocess.denoiser_said",
        judgement.network,
        "noise left in a half as training tells it, without the truth",
        peer="best linear filter, told in the same way",
        peer_value=judgement.linear,
    )


def _measure(found: Array, truth: Array) -> float:
    """RMS difference of twice the truth and an image of both halves, over the truth's own."""
    wanted = 2 * (truth - truth.mean())
    return float(np.sqrt((((found - found.mean()) - wanted) ** 2).mean() / (wanted**2).mean()))


def _measure_slope(found: Array, truth: Array) -> float:
    wanted = 2 * (truth - truth.mean())
    return float((found * wanted).sum() / (wanted**2).sum())


def _filter_best(image: Array, truth: Array) -> Array:
    """Filter by the rotationally symmetric transfer that comes nearest to the truth (Wiener)."""
    seen, wanted = np.fft.rfft2(image - image.mean()), np.fft.rfft2(2 * (truth - truth.mean()))
    size = image.shape[0]
    rings = np.rint(size * np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))).astype(int)
    shared = np.bincount(rings.ravel(), (seen.conj() * wanted).real.ravel())
    power = np.bincount(rings.ravel(), (np.abs(seen) ** 2).ravel())
    filtered = np.fft.irfft2(seen * (shared / np.maximum(power, 1e-12))[rings], s=image.shape)
    return np.asarray(filtered, np.float32)
