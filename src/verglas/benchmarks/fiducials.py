"""`fiducials`: beads found, erased and masked, on simulated series whose beads are known."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from verglas.algo.fiducials.compare import compare_spectra, deviation_of, join_pairs
from verglas.algo.fiducials.erase import erase_discs, mask_discs
from verglas.algo.fiducials.network import KINDS, make_network, segment_view
from verglas.algo.fiducials.scenes import SceneRanges
from verglas.algo.fiducials.search import find_in_view
from verglas.algo.fiducials.training import judge_network, make_scenes
from verglas.algo.simulation.tilt_series import simulate_tilt_series
from verglas.algo.simulation.views import Conditions
from verglas.benchmarks.harness import Figure, measure_time
from verglas.io.mrc import read_mrc, write_mrc
from verglas.io.network_weights import read_shipped_weights
from verglas.io.relion_tilt_series import write_tilt_series
from verglas.model import TiltSeries
from verglas.ops.geometry import series_matrices
from verglas.steps.fiducials import FIDUCIALS_STEP, WEIGHTS, FiducialsParams
from verglas.steps.reconstruct import RECONSTRUCT_STEP, ReconstructParams
from verglas.steps.series_beads import find_series
from verglas.steps.simulate import SimulateParams, build_scene, plan_series
from verglas.steps.step import RunOptions, run_step

FloatArray = npt.NDArray[np.float64]

PIXEL_ANGSTROM = 10.0
DIAMETER_ANGSTROM = 100.0

_QUIET = RunOptions(device="cpu", quiet=True)
_NEAR_PX = 4.0
_BORDER_PX = 6
_CORE_PX = 4
_CONTROLS = 40


@dataclass(frozen=True, eq=False)
class _Case:
    """A simulated series, and where its beads are: in space, Å, and in each view, pixels from its centre."""

    series: TiltSeries
    beads_angstrom: FloatArray
    places_px: list[FloatArray]


def run(quick: bool) -> Iterator[Figure]:
    """Find and erase the beads of simulated series, look for ghosts, judge the network, and time a large view."""
    with tempfile.TemporaryDirectory(prefix="verglas-fiducials-") as scratch:
        folder = Path(scratch)
        cases = [_simulate(folder, f"TS_{number}", quick) for number in range(1 if quick else 4)]
        star = write_tilt_series(folder, [case.series for case in cases])
        yield from _detection(cases)
        params = FiducialsParams(images=(star,), network=False)
        run_step(FIDUCIALS_STEP, params, folder / "erase", options=_QUIET)
        yield from _spectra(folder, cases)
        yield from _ghosts(folder, star, cases)
    yield from _network(quick)
    yield from _large_view(1024 if quick else 4096)


def _simulate(folder: Path, name: str, quick: bool) -> _Case:
    params = SimulateParams(
        name=name,
        image_size=(288, 288) if quick else (512, 512),
        pixel_size=PIXEL_ANGSTROM,
        thickness=900.0 if quick else 1500.0,
        tilt_step=6.0 if quick else 3.0,
        copies=20 if quick else 120,
        vesicles=0 if quick else 1,
        gold=10 if quick else 15,
        gold_diameter=DIAMETER_ANGSTROM,
    )
    seed = int(name[-1])
    stack = folder / f"{name}.mrc"
    truth = plan_series(name, seed, params, stack).truth
    _, whole = build_scene(name, seed, params, truth)
    images = simulate_tilt_series(whole, truth, conditions=Conditions(ice_noise=True), seed=seed)
    write_mrc(stack, images, voxel_size_angstrom=PIXEL_ANGSTROM, is_stack=True)
    points = np.column_stack([whole.beads_angstrom[:, :3], np.ones(len(whole.beads_angstrom))])
    places = series_matrices(truth.geometry).numpy() @ points.T
    return _Case(truth, points[:, :3], [view[:2].T / PIXEL_ANGSTROM for view in places])


def _detection(cases: list[_Case]) -> Iterator[Figure]:
    """Count what is found in each view alone, and with the help of all other views."""
    alone, together = np.zeros(3), np.zeros(3)
    for case in cases:
        found = find_series(case.series, None, 1)
        stack = read_mrc(case.series.images[0].path)
        for view, true, all_views in zip(stack, case.places_px, found.positions_px, strict=True):
            alone += _count(find_in_view(view, found.diameter_px).positions_px, true, view.shape)
            together += _count(all_views, true, view.shape)
    for name, counts in (("view", alone), ("series", together)):
        hits, said, there = counts.tolist()
        for kind, share, unit in (
            ("recall", hits / there, f"of {there:.0f} beads"),
            ("precision", hits / max(said, 1), f"of {said:.0f} found"),
        ):
            # Views alone are told for comparison.
            asked = name == "series"
            target = "at least 0.99" if asked else ""
            yield Figure(f"fiducials.{kind}_{name}", share, unit, target, share >= 0.99 if asked else None)


def _count(found: FloatArray, true: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Count beads found and right, found, and there; what lies at the border counts for neither."""
    half = np.array(shape[::-1]) / 2 - _BORDER_PX
    found, inner = (places[(np.abs(places) < half).all(axis=1)] for places in (found, true))
    if not len(found) or not len(true):
        return np.array([0.0, len(found), len(inner)])
    near = np.linalg.norm(found[:, None] - true, axis=2) < _NEAR_PX
    inside = (np.abs(true) < half).all(axis=1)
    # A finding may be that of a bead just beyond the border.
    right = float(near[:, inside].any(axis=0).sum())
    wrong = float((~near.any(axis=1)).sum())
    return np.array([right, right + wrong, float(inside.sum())])


def _spectra(folder: Path, cases: list[_Case]) -> Iterator[Figure]:
    """Compare the power in discs about the true places with that beside them."""
    pairs = []
    for case in cases:
        erased = read_mrc(folder / f"erase/stacks/{case.series.name}.mrc")
        masked = read_mrc(folder / f"erase/masks/{case.series.name}.mrc", np.int8) == 1
        for view, mask, places in zip(erased, masked, case.places_px, strict=True):
            half = np.array(view.shape[::-1]) / 2
            inside = places[(np.abs(places) < half).all(axis=1)]
            pairs.append(compare_spectra(view, mask, inside, 0.9 * DIAMETER_ANGSTROM / PIXEL_ANGSTROM))
    joined = join_pairs(pairs)
    deviation, error = deviation_of(joined)
    worst = int(np.abs(deviation).argmax())
    yield Figure(
        "fiducials.spectrum_deviation",
        100 * float(deviation[worst]),
        f"%, ring of {len(deviation)} that differs most, {len(joined.filled)} discs, standard error "
        f"{100 * float(error[worst]):.1f}",
        target="within 5",
        # Too few discs cannot tell.
        holds=bool(abs(deviation[worst]) <= 0.05) if error[worst] < 0.025 else None,
    )


def _ghosts(folder: Path, star: Path, cases: list[_Case]) -> Iterator[Figure]:
    """Compare the mean of all beads in the tomogram, before and after, with that of places without beads."""
    for name, table in (("raw", star), ("clean", folder / "erase/tilt_series.star")):
        run_step(RECONSTRUCT_STEP, ReconstructParams(tilt_series=table), folder / name, options=_QUIET)
    before, after = [], []
    beside: list[list[FloatArray]] = [[] for _ in range(_CONTROLS)]
    for case in cases:
        raw, clean = (
            read_mrc(folder / f"{name}/tomograms/{case.series.name}.mrc") for name in ("raw", "clean")
        )
        scatter, beads = clean.std(), case.beads_angstrom
        before.append(_cut(raw, beads) / scatter)
        after.append(_cut(clean, beads) / scatter)
        rng = np.random.default_rng(0)
        for control in beside:
            angle, away = rng.uniform(0, 2 * np.pi, len(beads)), rng.uniform(300, 600, len(beads))
            places = beads + np.stack([away * np.cos(angle), away * np.sin(angle), 0 * away], axis=1)
            apart = np.linalg.norm(places[:, None] - beads, axis=2).min(axis=1) > 250
            control.append(_cut(clean, places[apart]) / scatter)
    cubes = [np.concatenate(part) for part in (before, after, *beside)]
    # The mean of fewer cubes has more noise.
    powers = [float((part.mean(axis=0) ** 2).mean()) * len(part) / len(cubes[1]) for part in cubes]
    power_before, power_after, *power_beside = powers
    high, usual = float(np.percentile(power_beside, 95)), float(np.mean(power_beside))
    yield Figure(
        "fiducials.ghost_power_before", power_before, "of the mean bead, in variances of the tomogram"
    )
    yield Figure(
        "fiducials.ghost_power",
        power_after,
        "of the mean erased bead, in variances of the tomogram",
        target=f"at most {high:.3g}, the 95th percentile of places beside beads",
        holds=power_after <= high,
        peer="places beside beads",
        peer_value=usual,
        ratio=usual / power_after,
    )


def _cut(volume: npt.NDArray[np.float32], points_angstrom: FloatArray) -> FloatArray:
    """Cubes `(k, 9, 9, 9)` about points that lie inside."""
    centre = np.array([n // 2 for n in volume.shape])
    reach = _CORE_PX
    index = np.rint(points_angstrom[:, ::-1] / PIXEL_ANGSTROM).astype(int) + centre
    index = index[((index >= reach) & (index < np.array(volume.shape) - reach)).all(axis=1)]
    side = 2 * reach + 1
    cubes = [volume[z : z + side, y : y + side, x : x + side] for z, y, x in index - reach]
    return np.array(cubes, float).reshape(-1, side, side, side)


def _network(quick: bool) -> Iterator[Figure]:
    """Judge the shipped network on scenes of parameters that it was not trained with."""
    ranges = SceneRanges(
        (90.0, 160.0), (100.0, 250.0), (300.0, 900.0), (0.6, 0.8), (10000.0, 50000.0), (150.0, 800.0)
    )
    scores = judge_network(
        make_network(read_shipped_weights(WEIGHTS)),
        make_scenes(30 if quick else 200, 77, ranges, held_out=True),
    )
    for index, kind in enumerate(KINDS):
        for name in ("precision", "recall", "overlap"):
            value = float(getattr(scores, name)[index])
            yield Figure(f"fiducials.{kind}_{name}", value, "of pixels, on simulated scenes held out")


def _large_view(size: int) -> Iterator[Figure]:
    """Time one view with 25 beads of 100 Å at 1.35 Å a pixel."""
    pixel, radius = 1.35, 37.0
    rng = np.random.default_rng(0)
    view = rng.standard_normal((size, size), dtype=np.float32) + 10
    places = rng.uniform(-0.45, 0.45, (25 * size**2 // 4096**2 + 1, 2)) * size
    view[mask_discs((size, size), places, radius)] -= 3
    network = make_network(read_shipped_weights(WEIGHTS))
    work = {
        "find": lambda: find_in_view(view, 2 * radius),
        "erase": lambda: erase_discs(view, places, 1.9 * radius, 0),
        "mask": lambda: segment_view(network, view, pixel),
    }
    for name, function in work.items():
        timing = measure_time(function, rounds=3)
        yield Figure(
            f"fiducials.seconds_{name}", timing.median, f"s, a view of {size} x {size}, {len(places)} beads"
        )
