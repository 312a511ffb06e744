"""`verglas bench tilt-ctf`: defocus, astigmatism and hand of simulated series against truth, and the command's speed.

The specimen is a slab of ice and nothing else. The structure of water scatters in its whole depth, so every place
of a tilted view has rings of its own defocus; motion and the camera damp them as a B-factor does. No two series
have the same thickness, tilt axis, defocus, drift of the defocus over the tilts, astigmatism or hand; what the
estimate is told of the slab's inclination is a degree off. The images come from `algo.simulation`, which has a CTF
of its own.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from verglas.algo.ctf.fit import SearchRange, SeriesDefocus, estimate_defocus
from verglas.algo.ctf.spectra import measure_spectra
from verglas.algo.ctf.tiles import Band
from verglas.algo.simulation.specimen import build_specimen
from verglas.algo.simulation.tilt_scheme import Misalignment, make_tilt_scheme
from verglas.algo.simulation.tilt_series import simulate_tilt_series
from verglas.algo.simulation.views import Conditions
from verglas.benchmarks.harness import Figure, Peak, measure_process
from verglas.io.mrc import create_mrc
from verglas.io.relion_tilt_series import write_tilt_series
from verglas.model import ImageReference, Optics, TiltSeries
from verglas.runtime import available_cores, set_threads

PIXEL_ANGSTROM = 3.0
BAND = Band(highest_angstrom=6.6)
VIEWS_ON_DISK = 4


@dataclass(frozen=True, eq=False)
class Case:
    """A series with its truth.

    Parameters
    ----------
    truth
        Geometry, defocus and hand of the images.
    known
        What the estimate is given: no defocus, the hand +1, and an inclination that is a little off.
    images
        `(n, y, x)` electrons per pixel.
    """

    truth: TiltSeries
    known: TiltSeries
    images: npt.NDArray[np.float32]


def run(quick: bool) -> Iterator[Figure]:
    """Compare with the truth, then time the command."""
    set_threads(available_cores())
    yield from _compare_with_truth(*((2, 512) if quick else (40, 640)))
    yield from _look_at_nothing(2 if quick else 20)
    yield from _time_command(5 if quick else 41)


def make_case(number: int, size: int, *, views: int = 41, exposure_e_per_a2: float = 3.0) -> Case:
    """Simulate the series of this number, each view of `size`² pixels of 3 Å."""
    rng = np.random.default_rng([number, 1])
    thickness, offset = rng.uniform(600, 2000), rng.uniform(-1, 1)
    step = 120.0 / (views - 1)
    scheme = make_tilt_scheme(
        f"case_{number}",
        Optics(PIXEL_ANGSTROM, amplitude_contrast=0.07),
        (size, size),
        step_deg=step,
        exposure_e_per_a2=exposure_e_per_a2,
        axis_angle_deg=rng.uniform(-180, 180),
        hand=int(rng.choice([-1, 1])),
        misalignment=Misalignment(
            shift_angstrom=50.0,
            tilt_offset_deg=offset,
            astigmatism_angstrom=rng.uniform(0, 800),
            astigmatism_angle_deg=rng.uniform(-90, 90),
        ),
        seed=number,
    )
    turn = np.deg2rad(scheme.nominal.nominal_tilt_deg)
    defocus = rng.uniform(20000, 40000) + rng.normal(0, 200, views)
    defocus += rng.uniform(-1000, 1000) * np.sin(turn) + rng.uniform(-1000, 1000) * (1 - np.cos(turn))
    half = (scheme.truth.defocus_u_angstrom - scheme.truth.defocus_v_angstrom) / 2
    truth = replace(scheme.truth, defocus_u_angstrom=defocus + half, defocus_v_angstrom=defocus - half)
    side = size * PIXEL_ANGSTROM
    specimen = build_specimen(truth.name, (side, side, thickness), [], seed=number)
    conditions = Conditions(ice_noise=True, b_factor_a2=150.0, layer_angstrom=200.0)
    images = simulate_tilt_series(specimen, truth, conditions=conditions, seed=number)
    return Case(truth, _forget(truth, -offset), images)


def _forget(truth: TiltSeries, tilt_deg: float) -> TiltSeries:
    """Take what is to be found out of a record, and turn the specimen a little."""
    unknown = np.full(len(truth), np.nan)
    tilts = np.asarray(truth.y_tilt_deg) + tilt_deg
    return replace(truth, defocus_u_angstrom=unknown, defocus_v_angstrom=unknown, hand=1, y_tilt_deg=tilts)


def estimate_case(case: Case) -> SeriesDefocus:
    """Do what the step does, from images in memory."""
    spectra = [
        measure_spectra(torch.from_numpy(image), case.known, i, BAND) for i, image in enumerate(case.images)
    ]
    return estimate_defocus(spectra, np.asarray(case.known.y_tilt_deg), case.known.optics, SearchRange())


def _compare_with_truth(count: int, size: int) -> Iterator[Figure]:
    at_axis, per_view, astigmatism, hands = [], [], [], 0
    for number in range(count):
        case = make_case(number, size)
        found = estimate_case(case)
        difference = found.views.defocus_angstrom - case.truth.mean_defocus_angstrom
        at_axis.append(abs(difference.mean()))
        per_view += np.abs(difference).tolist()
        astigmatism += np.hypot(*(found.views.astigmatism - _true_astigmatism(case.truth)).T).tolist()
        hands += found.verdict == case.truth.hand
    field = f"{count} series of 41 views of {size * PIXEL_ANGSTROM:.0f} Å, 3 e/Å² each, 2 to 4 µm"
    error = float(np.median(at_axis))
    yield Figure(
        "tilt-ctf.axis_error", error, f"Å, median of {field}", target="at most 50", holds=error <= 50
    )
    yield Figure("tilt-ctf.axis_error_worst", float(np.max(at_axis)), f"Å, worst of {count} series")
    error = float(np.median(per_view))
    yield Figure(
        "tilt-ctf.view_error", error, "Å, median of all views", target="at most 150", holds=error <= 150
    )
    yield Figure(
        "tilt-ctf.view_error_90", float(np.quantile(per_view, 0.9)), "Å, of nine tenths of all views"
    )
    yield Figure(
        "tilt-ctf.astigmatism_error",
        2 * float(np.median(astigmatism)),
        "Å, median of all views: defocus u - v of the difference",
    )
    yield Figure(
        "tilt-ctf.hand", hands, f"of {count} hands told right", target=f"{count}", holds=hands == count
    )


def _true_astigmatism(truth: TiltSeries) -> npt.NDArray[np.float64]:
    half = (truth.defocus_u_angstrom - truth.defocus_v_angstrom) / 2
    turn = np.deg2rad(2 * truth.defocus_angle_deg)
    return np.stack([half * np.cos(turn), half * np.sin(turn)], axis=1)


def _look_at_nothing(count: int) -> Iterator[Figure]:
    """Series that cannot tell the hand: counts alone, and rings that are the same all over the field."""
    empty = [estimate_case(make_empty_case(number)) for number in range(count)]
    silent = sum(not one.is_found for one in empty)
    unit = f"of {count} series of counted electrons alone"
    yield Figure("tilt-ctf.refused", silent, f"{unit}, refused", target=f"{count}", holds=silent == count)
    untold = sum(one.verdict == 0 for one in empty)
    yield Figure(
        "tilt-ctf.hand_untold", untold, f"{unit}, 'cannot tell'", target=f"{count}", holds=untold == count
    )
    untold = sum(estimate_case(make_flat_case(number)).verdict == 0 for number in range(count))
    yield Figure(
        "tilt-ctf.hand_untold_flat",
        untold,
        f"of {count} series with rings but no slope over the field, 'cannot tell'",
        target=f"{count}",
        holds=untold == count,
    )


def make_empty_case(number: int, size: int = 384) -> Case:
    """Make views of nothing but counted electrons."""
    scheme = make_tilt_scheme("empty", Optics(PIXEL_ANGSTROM), (size, size), step_deg=6.0)
    counts = np.random.default_rng([number, 2]).poisson(27.0, (len(scheme.truth), size, size))
    return Case(scheme.truth, _forget(scheme.truth, 0.0), counts.astype(np.float32))


def make_flat_case(number: int, size: int = 384) -> Case:
    """Simulate a slab that never tilts, and say that it does."""
    scheme = make_tilt_scheme(
        "flat", Optics(PIXEL_ANGSTROM), (size, size), step_deg=6.0, defocus_angstrom=25000.0
    )
    flat = replace(scheme.truth, y_tilt_deg=np.zeros(len(scheme.truth)))
    specimen = build_specimen("flat", (1000.0, 1000.0, 1000.0), [], seed=number)
    conditions = Conditions(ice_noise=True, b_factor_a2=150.0, layer_angstrom=200.0)
    images = simulate_tilt_series(specimen, flat, conditions=conditions, seed=number)
    return Case(scheme.truth, _forget(scheme.truth, 0.0), images)


def _time_command(views: int) -> Iterator[Figure]:
    size, pixel = 4096, 1.35
    with tempfile.TemporaryDirectory(prefix="verglas-tilt-ctf-") as scratch:
        star = _write_large_series(Path(scratch), views, size, pixel)
        done = _run_command(star, Path(scratch) / "out")
    yield Figure(
        "tilt-ctf.seconds",
        done.seconds,
        f"s, the command on {views} views of {size} x {size} at {pixel} Å, with start-up and figures",
        target="" if views < 41 else "at most 180",
        holds=None if views < 41 else done.seconds <= 180,
    )
    yield Figure("tilt-ctf.peak_memory", done.memory_bytes / 1e6, "MB")


def _write_large_series(folder: Path, views: int, size: int, pixel: float) -> Path:
    """Write views that share a few images of untilted ice, so that a disk need not hold 41 of them."""
    scheme = make_tilt_scheme("large", Optics(pixel), (size, size), step_deg=120 / max(views - 1, 1))
    few = scheme.truth.take(list(range(VIEWS_ON_DISK)))
    few = replace(few, y_tilt_deg=np.zeros(VIEWS_ON_DISK))
    specimen = build_specimen("large", (1000.0, 1000.0, 1000.0), [], seed=1)
    conditions = Conditions(ice_noise=True, b_factor_a2=150.0, layer_angstrom=500.0)
    images = simulate_tilt_series(specimen, few, conditions=conditions, seed=1, workers=1)
    stack = folder / "large.mrc"
    with create_mrc(stack, images.shape, voxel_size_angstrom=pixel, is_stack=True) as writer:
        writer.write(images)
    known = replace(_forget(scheme.truth, 0.0), z_rot_deg=np.full(len(scheme.truth), 85.0))
    references = tuple(ImageReference(stack, i % VIEWS_ON_DISK) for i in range(len(known)))
    return write_tilt_series(folder, [replace(known, images=references)])


def _run_command(star: Path, out: Path) -> Peak:
    return measure_process([sys.executable, "-m", "verglas", "ctf", star, "--out", out])
