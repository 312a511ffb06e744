"""`verglas bench ctf`: defocus, astigmatism and tilt of simulated micrographs against truth.

Beside it runs torch-ctf-estimation: both get the same images, range of resolution and range of defocus, one thread
for an image while every core has an image of its own, and start from an image in memory. The peer is told which
images are tilted; ours finds out. A further set has too few electrons for many of its images: there the question is
not how good an answer is, but whether a wrong one is flagged.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from verglas.algo.ctf.micrograph import ImageSearch, estimate_image
from verglas.algo.ctf.quality import fit_and_judge
from verglas.algo.ctf.spectra import end_band, measure_cells
from verglas.algo.ctf.tiles import Band
from verglas.benchmarks.ctf_cases import Case, make_case, make_empty_image, make_thick_case
from verglas.benchmarks.harness import NO_PEER, Figure
from verglas.benchmarks.peers import TORCH_CTF_ESTIMATION, run_peer
from verglas.model import Optics
from verglas.runtime import available_cores, set_threads

FloatArray = npt.NDArray[np.float64]

PEER = "torch_ctf_estimation"
MEASURED = Band(30.0, 3.5)
FITTED_ANGSTROM = 5.0
LARGE_ASTIGMATISM = 200.0
WRONG_ANGSTROM = 1000.0
AT_ONCE = 10

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What was found for one image.

    Parameters
    ----------
    defocus_angstrom, angle_deg
        At the centre, and of the astigmatism.
    tilt_deg
        Of the specimen.
    flagged
        Whether it is said to be doubtful.
    thickness_angstrom
        Of the specimen; none where the rings do not tell it.
    seconds
        That it took.
    """

    defocus_angstrom: float
    angle_deg: float
    tilt_deg: float
    flagged: bool
    thickness_angstrom: float | None
    seconds: float


def run(quick: bool) -> Iterator[Figure]:
    """Compare untilted and tilted micrographs, then those with hardly any signal."""
    size = 1024 if quick else 1536
    level = _gather(4 if quick else 100, size, tilted=False)
    tilted = _gather(4 if quick else 100, size, tilted=True)
    yield from _compare(
        level, f"untilted micrographs of {size}²", "untilted", None if quick else (25.0, 150.0)
    )
    steep = [one for one in tilted if one[0].tilt_deg == 60.0]
    targets = None if quick else (100.0, 400.0)
    yield from _compare(steep, f"micrographs of {size}² tilted by 60°", "tilted", targets)
    yield from _describe_tilts(tilted)
    yield from _compare_angles([*level, *tilted])
    yield from _compare_seconds([*level, *tilted], size)
    yield from _look_for_silent_failures([*level, *tilted], 6 if quick else 60, size)
    yield from _measure_thick(2 if quick else 40, size, [*level, *tilted], None if quick else (50.0, 25.0))


Pair = tuple[Case, Answer, tuple[float, float, float] | None]


def estimate_one(image: npt.NDArray[np.float32], optics: Optics) -> Answer:
    """Do what the step does, from an image in memory."""
    started = time.perf_counter()
    cells = measure_cells(torch.from_numpy(image), optics.pixel_size_angstrom, MEASURED, "image")
    found, quality, verdict = fit_and_judge(cells, optics, ImageSearch(), FITTED_ANGSTROM)
    u, v, angle = found.principal
    seconds = time.perf_counter() - started
    thickness, _ = quality.tell_thickness(found)
    return Answer((u + v) / 2, angle, found.tilt_deg, verdict.confidence < 0.5, thickness, seconds)


def _gather(count: int, size: int, *, tilted: bool) -> list[Pair]:
    """Simulate images, and let both programs work on them."""
    return _spread(partial(_estimate_both, size=size, tilted=tilted), range(count))


def _spread(work: Callable[[Sequence[int]], list[T]], numbers: range) -> list[T]:
    """Give every core a few images at a time, with one thread for each."""
    at_once = min(AT_ONCE, -(-len(numbers) // available_cores()))
    parts = [numbers[first : first + at_once] for first in range(0, len(numbers), at_once)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(available_cores(), context, initializer=set_threads, initargs=(1,)) as pool:
        return [one for part in pool.map(work, parts) for one in part]


def _estimate_both(numbers: Sequence[int], *, size: int, tilted: bool) -> list[Pair]:
    cases = [make_case(number, size, tilted=tilted) for number in numbers]
    estimate_one(cases[0].image, cases[0].optics)
    ours = [estimate_one(case.image, case.optics) for case in cases]
    theirs = _ask_peer(cases)
    known = [replace(case, image=case.image[:0]) for case in cases]
    return list(zip(known, ours, theirs, strict=True))


def _estimate_weak(numbers: Sequence[int], *, size: int) -> list[tuple[float, Answer]]:
    """Images of 0.3 to 3 e/Å², and the defocus of each."""
    cases = [make_case(1000 + n, size, tilted=n % 4 == 3, exposures=(0.3, 3.0)) for n in numbers]
    return [(case.defocus_angstrom, estimate_one(case.image, case.optics)) for case in cases]


def _estimate_empty(numbers: Sequence[int], *, size: int) -> list[Answer]:
    return [estimate_one(make_empty_image(number, size), Optics(1.5)) for number in numbers]


def _estimate_thick(numbers: Sequence[int], *, size: int) -> list[tuple[Case, Answer, float]]:
    """Ice 800 to 3000 Å thick, every fourth tilted; and the defocus that a fit without nodes finds."""
    done = []
    for number in numbers:
        thickness = float(np.random.default_rng([number, 78]).uniform(800, 3000))
        tilt = (20.0, 35.0, 50.0)[number // 4 % 3] if number % 4 == 3 else 0.0
        case = make_thick_case(number, size, thickness, tilt)
        pixel = case.optics.pixel_size_angstrom
        cells = end_band(
            measure_cells(torch.from_numpy(case.image), pixel, MEASURED, "image"), FITTED_ANGSTROM
        )
        u, v, _ = estimate_image(cells, case.optics, ImageSearch()).principal
        done.append((replace(case, image=case.image[:0]), estimate_one(case.image, case.optics), (u + v) / 2))
    return done


def _ask_peer(cases: Sequence[Case]) -> list[tuple[float, float, float] | None]:
    with tempfile.TemporaryDirectory(prefix="verglas-ctf-") as scratch:
        paths = [Path(scratch) / f"{i}.npy" for i in range(len(cases))]
        for path, case in zip(paths, cases, strict=True):
            np.save(path, case.image)
        told = run_peer(
            PEER,
            TORCH_CTF_ESTIMATION,
            images=[str(path) for path in paths],
            tilted=[case.tilt_deg > 0 for case in cases],
            pixel=cases[0].optics.pixel_size_angstrom,
            workers=1,
        )
    if told is None:
        return [None] * len(cases)
    # Where it gave up, it is as wrong as can be.
    return [(defocus or np.inf, angle or 0.0, seconds) for defocus, angle, seconds in told["found"]]


def _errors(pairs: Sequence[Pair]) -> tuple[FloatArray, FloatArray | None]:
    """Errors of the defocus, ours and the peer's, Å."""
    ours = np.array([abs(answer.defocus_angstrom - case.defocus_angstrom) for case, answer, _ in pairs])
    theirs = [abs(peer[0] - case.defocus_angstrom) for case, _, peer in pairs if peer is not None]
    return ours, np.array(theirs) if len(theirs) == len(pairs) else None


def _compare(
    pairs: Sequence[Pair], what: str, name: str, targets: tuple[float, float] | None
) -> Iterator[Figure]:
    """Few images of a small size tell that it works, not how well: then there are no targets."""
    ours, theirs = _errors(pairs)
    for i, (word, share) in enumerate((("", 0.5), ("_95", 0.95))):
        value = float(np.quantile(ours, share))
        other = (
            None
            if theirs is None
            else float(np.quantile(theirs, share, method="higher" if share > 0.5 else "linear"))
        )
        measure = "median" if share == 0.5 else "95th percentile"
        yield Figure(
            f"ctf.{name}_error{word}",
            value,
            f"Å, {measure} over {len(pairs)} {what}, 0.4 to 3 µm, 3 to 60 e/Å²",
            target=f"at most {targets[i]:g}, and below the peer's" if targets else "",
            holds=value <= targets[i] and (other is None or value < other) if targets else None,
            peer=PEER if theirs is not None else f"{PEER}: {NO_PEER}",
            peer_value=other if other is None or np.isfinite(other) else None,
            ratio=None if other is None else min(other / value, 1e6),
        )


def _describe_tilts(pairs: Sequence[Pair]) -> Iterator[Figure]:
    errors = [abs(answer.tilt_deg - case.tilt_deg) for case, answer, _ in pairs]
    yield Figure(
        "ctf.tilt_error", float(np.median(errors)), f"degrees, median of {len(pairs)} tilted by 10 to 60°"
    )


def _compare_angles(pairs: Sequence[Pair]) -> Iterator[Figure]:
    large = [one for one in pairs if one[0].astigmatism_angstrom > LARGE_ASTIGMATISM]

    def differ(found: float, true: float) -> float:
        return abs((found - true + 90) % 180 - 90)

    value = float(np.median([differ(answer.angle_deg, case.angle_deg) for case, answer, _ in large]))
    theirs = [differ(peer[1], case.angle_deg) for case, _, peer in large if peer is not None]
    other = float(np.median(theirs)) if theirs else None
    yield Figure(
        "ctf.angle_error",
        value,
        f"degrees, median of {len(large)} with an astigmatism of {LARGE_ASTIGMATISM:g} to 800 Å",
        target="at most 5",
        holds=value <= 5,
        peer=PEER if theirs else f"{PEER}: {NO_PEER}",
        peer_value=other,
        ratio=None if other is None else other / max(value, 1e-9),
    )


def _compare_seconds(pairs: Sequence[Pair], size: int) -> Iterator[Figure]:
    value = float(np.median([answer.seconds for _, answer, _ in pairs]))
    theirs = [peer[2] for _, _, peer in pairs if peer is not None]
    other = float(np.median(theirs)) if theirs else None
    yield Figure(
        "ctf.seconds",
        value,
        f"s, median of an image of {size}² in memory, one thread, an image on each of {available_cores()} cores",
        target="half of the peer's",
        holds=None if other is None else 2 * value <= other,
        peer=PEER if theirs else f"{PEER}: {NO_PEER}",
        peer_value=other,
        ratio=None if other is None else other / value,
    )


def _look_for_silent_failures(pairs: Sequence[Pair], count: int, size: int) -> Iterator[Figure]:
    """Add images of 0.3 to 3 e/Å², and of nothing."""
    answers = [(case.defocus_angstrom, answer) for case, answer, _ in pairs]
    answers += _spread(partial(_estimate_weak, size=size), range(count))
    wrong = [answer for truth, answer in answers if abs(answer.defocus_angstrom - truth) > WRONG_ANGSTROM]
    empty = _spread(partial(_estimate_empty, size=size), range(max(2, count // 3)))
    flagged = sum(answer.flagged for answer in [*wrong, *empty])
    total = len(wrong) + len(empty)
    yield Figure(
        "ctf.flagged",
        flagged / total,
        f"of {total} wrong by more than {WRONG_ANGSTROM:g} Å or without any rings ({len(wrong)} and {len(empty)})",
        target="at least 0.9",
        holds=flagged >= 0.9 * total,
    )
    right = [
        answer for case, answer, _ in pairs if abs(answer.defocus_angstrom - case.defocus_angstrom) <= 150
    ]
    yield Figure(
        "ctf.flagged_in_vain",
        sum(answer.flagged for answer in right) / max(len(right), 1),
        f"of {len(right)} of 3 e/Å² and more that are right within 150 Å",
    )


def _measure_thick(
    count: int, size: int, others: Sequence[Pair], targets: tuple[float, float] | None
) -> Iterator[Figure]:
    """Say how well the thickness of thick specimens is told, whether it is of others, and what it does to the fit."""
    thick = _spread(partial(_estimate_thick, size=size), range(count))
    errors = [
        abs(answer.thickness_angstrom - _across(case))
        for case, answer, _ in thick
        if answer.thickness_angstrom is not None
    ]
    value = float(np.median(errors)) if errors else float("inf")
    unit = f"Å, median of {len(errors)} told of {count} of 800 to 3000 Å, 20 to 60 e/Å², some tilted"
    yield Figure(
        "ctf.thickness_error",
        value,
        unit,
        target=f"at most {targets[0]:g}" if targets else "",
        holds=value <= targets[0] if targets else None,
    )
    unit = f"of {count} of 800 to 3000 Å whose thickness is told"
    yield Figure("ctf.thickness_told", len(errors), unit)
    thin = [(case, answer.thickness_angstrom) for case, answer, _ in others]
    false = sum(told is not None and abs(told - _across(case)) > 0.2 * _across(case) for case, told in thin)
    unit = f"of {len(thin)} that are thinner or weaker are told a thickness wrong by more than a fifth"
    yield Figure("ctf.thickness_false", false, unit, target="0", holds=false == 0)
    value = float(
        np.median([abs(answer.defocus_angstrom - case.defocus_angstrom) for case, answer, _ in thick])
    )
    other = float(np.median([abs(plain - case.defocus_angstrom) for case, _, plain in thick]))
    yield Figure(
        "ctf.thick_error",
        value,
        f"Å, median of the defocus of {count} thick specimens",
        target=f"at most {targets[1]:g}" if targets else "",
        holds=value <= targets[1] if targets else None,
        peer="our own fit without nodes",
        peer_value=other,
        ratio=other / value,
    )


def _across(case: Case) -> float:
    """Thickness of the specimen, whatever its tilt."""
    return case.thickness_angstrom * float(np.cos(np.deg2rad(case.tilt_deg)))
