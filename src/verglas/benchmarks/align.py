"""`verglas bench align`: poses and maps of simulated molecules beside the truth, and speed beside RELION's."""

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from verglas.benchmarks.align_cases import Case, average_and_align, make_average, simulate_case
from verglas.benchmarks.align_speed import race_with_relion
from verglas.benchmarks.harness import Figure
from verglas.io.mrc import read_mrc
from verglas.ops.rotation import angular_distance_deg
from verglas.ops.symmetry import symmetry_matrices
from verglas.ops.symmetry_search import find_symmetry_frame
from verglas.runtime import available_cores
from verglas.steps.average import AVERAGE_STEP
from verglas.steps.compare_average import AverageErrors, judge_average
from verglas.steps.simulate import SimulateParams
from verglas.steps.step import RunOptions, run_step

_DATA = "VERGLAS_SHARED_DATA"
_TURN, _SHIFT, _TRUTH, _AXES = 1.5, 2.0, 10.0, 3.0

_RIBOSOME = Case(
    SimulateParams(
        name="ribosome",
        count=4,
        seed=5,
        image_size=(640, 640),
        pixel_size=4.0,
        thickness=1500.0,
        # Series at one defocus would all lack the same frequencies.
        defocus_spread=8000.0,
        copies=100,
        vesicles=0,
        gold=0,
        misalignment=0.0,
        truth_voxel_size=8.0,
    ),
    symmetry="C1",
    radius_angstrom=125.0,
    box=80,
    cycles=3,
)
_SMALL = Case(
    SimulateParams(
        name="demo",
        seed=5,
        image_size=(256, 256),
        pixel_size=9.0,
        thickness=1000.0,
        tilt_step=6.0,
        exposure=6.0,
        copies=40,
        vesicles=0,
        gold=0,
        misalignment=0.0,
    ),
    symmetry="C1",
    radius_angstrom=125.0,
    box=36,
    cycles=1,
)


def run(quick: bool) -> Iterator[Figure]:
    """Align simulated molecules, then race; the quick case is one small series of made-up ribosomes."""
    if quick:
        yield from _follow("quick", _SMALL)
        yield from race_with_relion(quick)
        return
    models = Path(os.environ.get(_DATA, "../shared/data")) / "models"
    for name, file in (("ribosome", "4v5d.cif.gz"), ("apoferritin", "6z6u.pdb.gz")):
        if not (models / file).exists():
            yield Figure(f"align.{name}.turn", None, f"degrees; no data: set {_DATA}")
            continue
        yield from _follow(name, _choose_case(name, models / file))
    yield from race_with_relion(quick)


def _choose_case(name: str, model: Path) -> Case:
    if name == "ribosome":
        return replace(_RIBOSOME, simulation=_RIBOSOME.simulation.model_copy(update={"model": model}))
    update = {"model": model, "name": name, "image_size": (512, 512)}
    simulation = _RIBOSOME.simulation.model_copy(update=update)
    return replace(_RIBOSOME, simulation=simulation, symmetry="O", radius_angstrom=70.0, box=48)


def _follow(name: str, case: Case) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="verglas-align-") as scratch:
        yield from follow_case(name, case, Path(scratch))


def follow_case(name: str, case: Case, folder: Path) -> Iterator[Figure]:
    """Run the cycles in a folder and tell how far the poses and the map of the last are from the truth."""
    options = RunOptions(quiet=True, device="cpu", workers=available_cores())
    start = simulate_case(case, folder, options)
    started = time.perf_counter()
    cycles = list(average_and_align(case, start, folder, options))
    seconds = time.perf_counter() - started
    verdicts = [judge_average(folder / "simulate", *cycle) for cycle in cycles]
    if case.symmetry != "C1":
        yield _find_axes(name, case, cycles[0][0], folder, options)
    yield from _report(f"align.{name}", case, verdicts, judged=name != "quick")
    count = case.simulation.copies * case.simulation.count
    yield Figure(
        f"align.{name}.seconds", seconds, f"s, {count} particles, {case.cycles} cycles of align and average"
    )


def _find_axes(name: str, case: Case, particles: Path, folder: Path, options: RunOptions) -> Figure:
    """Find the point group in the first average, made without it: its axes are those of the true poses."""
    run_step(
        AVERAGE_STEP,
        make_average(replace(case, symmetry="C1"), particles, folder),
        folder / "unsymmetric",
        options=options,
    )
    volume = torch.from_numpy(np.array(read_mrc(folder / "unsymmetric/maps/average.mrc")))
    frame = find_symmetry_frame(volume, case.symmetry)
    group = symmetry_matrices(case.symmetry).double()
    off = float(angular_distance_deg(frame.rotation.double(), group).min())
    return Figure(
        f"align.{name}.axes",
        off,
        f"degrees between the axes found in the first average and the true ones; correlation {frame.correlation:.2f}",
        target=f"at most {_AXES}",
        holds=off <= _AXES,
    )


def _report(name: str, case: Case, verdicts: list[AverageErrors], *, judged: bool) -> Iterator[Figure]:
    first, last = verdicts[0], verdicts[-1]
    turn = float(last.poses.angles_deg.median())
    shift = float(last.poses.distances_angstrom.median())
    after = f"median after {case.cycles} cycles, {{:.1f}} at the start"
    yield Figure(
        f"{name}.turn",
        turn,
        f"degrees, {after.format(float(first.poses.angles_deg.median()))}",
        target=f"at most {_TURN}",
        holds=turn <= _TURN,
    )
    yield Figure(
        f"{name}.shift",
        shift,
        f"Å, {after.format(float(first.poses.distances_angstrom.median()))}",
        target=f"at most {_SHIFT}" if judged else "",
        holds=shift <= _SHIFT if judged else None,
    )
    yield Figure(
        f"{name}.truth",
        last.truth_angstrom,
        f"Å where the map's correlation with the truth is 0.5, {first.truth_angstrom:.1f} at the start",
        target=f"{_TRUTH:g} or better" if judged else "",
        holds=last.truth_angstrom <= _TRUTH if judged else None,
    )
    ratio = last.half_maps_angstrom / last.truth_angstrom
    yield Figure(
        f"{name}.half_maps",
        last.half_maps_angstrom,
        "Å where the half maps' correlation is 0.143",
        target="within 10 % of the truth's 0.5" if judged else "",
        holds=abs(ratio - 1) <= 0.1 if judged else None,
        peer="correlation with the truth",
        peer_value=last.truth_angstrom,
        ratio=ratio,
    )
