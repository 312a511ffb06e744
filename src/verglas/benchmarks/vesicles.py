"""`membranes trace` on simulated micrographs with vesicles."""

import time
from collections.abc import Iterator
from itertools import product

import numpy as np

from verglas.algo.membranes.tracing import trace_membranes
from verglas.algo.membranes.vesicles import fit_vesicles
from verglas.benchmarks.harness import Figure
from verglas.benchmarks.vesicle_cases import VesicleCase, make_micrograph

PEER = "torch-subtract-membranes-2d, measured apart"
SIZE, GAP = 720, 18.0
PEER_LEFT = {1.5: (0.23, 0.95), 4.0: (0.48, 0.95)}
PEER_SECONDS = 13.5
"""Modelling and rendering of one membrane, the least that was measured."""


def run(quick: bool) -> Iterator[Figure]:
    """Measure residual, slope, speed, and what is away from membranes, over micrographs of different noise."""
    seeds = range(2 if quick else 12)
    for noise, (peer_left, peer_slope) in PEER_LEFT.items():
        seconds, left, slopes = [], [], []
        for seed, opposite in product(seeds, (False, True)):
            case = make_micrograph(SIZE, noise, seed=seed, opposite=opposite)
            started = time.perf_counter()
            traces = trace_membranes(case.image, case.pixel_size_angstrom, mask=case.mask)
            _, model = fit_vesicles(case.image, traces, GAP)
            seconds.append(time.perf_counter() - started)
            one, slope = _compare(case, model)
            left.append(one)
            slopes.append(slope)
        yield from _tell(noise, left, slopes, seconds, peer_left, peer_slope)
        yield from _look_elsewhere(noise, case, model)
    yield from _cross(1.5)
    yield from _find(1.5)


def _compare(
    case: VesicleCase, model: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]"
) -> tuple[float, float]:
    energy = float((case.membranes**2).sum())
    left = float(np.sqrt(((case.membranes - model) ** 2).sum() / energy))
    return left, float((case.membranes * model).sum() / energy)


def _tell(
    noise: float,
    left: list[float],
    slopes: list[float],
    seconds: list[float],
    peer_left: float,
    peer_slope: float,
) -> Iterator[Figure]:
    name, count = f"noise_{noise:g}", len(left)
    worst, mean = max(left), float(np.mean(slopes))
    pairs = np.reshape(slopes, (-1, 2)).mean(axis=1)
    error = float(np.std(pairs) / np.sqrt(len(pairs)))
    yield Figure(
        f"vesicles.left_{name}",
        worst,
        f"of the membranes' root mean square, the worst of {count}; noise {noise:g} of a leaflet's height",
        target=f"at most {peer_left / 2:g}, half of the peer's",
        holds=worst <= peer_left / 2,
        peer=PEER,
        peer_value=peer_left,
        ratio=peer_left / worst,
    )
    yield Figure(
        f"vesicles.slope_{name}",
        mean,
        f"of what was taken out on the truth, the mean of {len(pairs)} pairs of opposite noise; "
        f"its standard error is {error:.4f}",
        target="0.99 to 1.01",
        holds=abs(mean - 1) <= 0.01,
        peer=PEER,
        peer_value=peer_slope,
    )
    median = float(np.median(seconds))
    yield Figure(
        f"vesicles.seconds_{name}",
        median,
        "s a membrane of 1300 pixels, traced, fitted and rendered",
        target=f"at most {PEER_SECONDS / 5:g}, a fifth of the peer's",
        holds=median <= PEER_SECONDS / 5,
        peer=PEER,
        peer_value=PEER_SECONDS,
        ratio=PEER_SECONDS / median,
    )


def _look_elsewhere(
    noise: float, case: VesicleCase, model: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]"
) -> Iterator[Figure]:
    """Look at what is away from membranes, and at the rim of what is subtracted."""
    away = case.membranes < 0.01
    changed = float((model[away] != 0).mean())
    yield Figure(
        f"vesicles.changed_elsewhere_noise_{noise:g}",
        float(np.abs(model[away]).max()),
        f"of a leaflet's height, the largest change where there is no membrane; {changed:.1%} of it is touched",
        target="at most 0.2",
        holds=float(np.abs(model[away]).max()) <= 0.2,
    )
    touched = model != 0
    rim = touched & ~(
        np.roll(touched, 1, 0) & np.roll(touched, -1, 0) & np.roll(touched, 1, 1) & np.roll(touched, -1, 1)
    )
    step = float(np.abs(model[rim]).max())
    yield Figure(
        f"vesicles.seam_noise_{noise:g}",
        step,
        "of a leaflet's height, the largest step at the border of what is subtracted",
        target="at most 0.01",
        holds=step <= 0.01,
    )


def _cross(noise: float) -> Iterator[Figure]:
    case = make_micrograph(SIZE, noise, rings=2, seed=1)
    traces = trace_membranes(case.image, case.pixel_size_angstrom, mask=case.mask)
    _, model = fit_vesicles(case.image, traces, GAP)
    left, slope = _compare(case, model)
    yield Figure(
        "vesicles.left_crossing",
        left,
        f"of the membranes' root mean square, two vesicles that cross; slope {slope:.3f}",
        target="at most 0.125",
        holds=left <= 0.125,
    )


def _find(noise: float) -> Iterator[Figure]:
    case = make_micrograph(SIZE, noise, seed=2)
    traces = trace_membranes(case.image, case.pixel_size_angstrom)
    _, model = fit_vesicles(case.image, traces, GAP)
    left, slope = _compare(case, model)
    yield Figure(
        "vesicles.left_without_mask",
        left,
        f"of the membrane's root mean square, found without a mask; slope {slope:.3f}",
        target="at most 0.115",
        holds=left <= 0.115,
    )
