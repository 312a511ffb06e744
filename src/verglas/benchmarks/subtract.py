"""`subtract` beside `relion_particle_subtract`, on particles whose projections and transfer functions RELION made."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from verglas.benchmarks.harness import NO_PEER, Figure
from verglas.benchmarks.subtract_cases import Case, make_case, read_subtracted, run_relion
from verglas.io.mrc import read_mrc, write_mrc
from verglas.io.star import get_table, read_star, write_star
from verglas.runtime import available_cores, set_threads
from verglas.steps.step import RunOptions, Summary, run_step
from verglas.steps.subtract import SUBTRACT_STEP, SubtractParams
from verglas.steps.subtract_revert import SUBTRACT_REVERT_STEP, SubtractRevertParams

QUIET = RunOptions(device="cpu", quiet=True)
POSE_ERRORS_DEG = (0.0, 1.0, 3.0)
_ROUNDS = 5


def run(quick: bool) -> Iterator[Figure]:
    """Simulate, subtract with both programs, compare with the truth."""
    if shutil.which("relion_project") is None:
        yield Figure("subtract.energy_left", None, "", peer=NO_PEER)
        return
    set_threads(available_cores())
    count, size = (300, 48) if quick else (5000, 96)
    with tempfile.TemporaryDirectory(prefix="verglas-subtract-") as scratch:
        # Programs are compiled and libraries loaded before anything is timed.
        small = make_case(Path(scratch) / "planted", 300, 48)
        assert small is not None
        _subtract(small, "warm_up")
        for error in POSE_ERRORS_DEG[:: 2 if quick else 1]:
            case = make_case(Path(scratch) / f"poses_{error:g}", count, size, pose_error_deg=error)
            assert case is not None
            yield from _compare(case, error)
            if error:
                shutil.rmtree(case.folder)
            else:
                exact = case
        yield from _follow_up(exact)
        yield from _plant_failures(small)


def _compare(case: Case, error: float) -> Iterator[Figure]:
    name = f"{error:g}deg"
    prepare_relion(case)
    seconds, cold, peers = _time_in_turn(case, 1 if error else _ROUNDS)
    relion = min(peers, key=peers.__getitem__)
    relion_seconds = peers[relion]
    before = read_mrc(case.folder / "particles.mrcs")
    left, lost = [], []
    for star in ("sub/particles.star", "relion/particles_subtracted.star"):
        taken = before - read_subtracted(case.folder / star, case.folder)
        left.append(_share(case.removed - taken, case.removed - taken, case.removed))
        lost.append(_share(taken - case.removed, case.kept, case.kept))
    yield Figure(
        f"subtract.energy_left_{name}",
        left[0],
        f"of the removed part's energy in the images, poses wrong by {error:g} degrees",
        target="at most a quarter of RELION's" if not error else "below RELION's",
        holds=left[0] <= (0.25 if not error else 1.0) * left[1],
        peer="relion_particle_subtract",
        peer_value=left[1],
        ratio=left[1] / left[0],
    )
    yield Figure(
        f"subtract.kept_change_{name}",
        lost[0],
        "of the kept part, taken out with the removed one",
        target="within 0.01",
        holds=abs(lost[0]) <= 0.01,
        peer="relion_particle_subtract",
        peer_value=lost[1],
    )
    table = get_table(read_star(case.folder / "sub/particles.star"), "particles", "particles.star")
    agreement = float(np.corrcoef(table["vglSubtractScale"], case.contrast)[0, 1])
    yield Figure(
        f"subtract.scale_correlation_{name}",
        agreement,
        "of each particle's scale with the truth",
        target="at least 0.9",
        holds=agreement >= 0.9,
    )
    if not error:
        count = len(case.contrast)
        yield Figure(
            "subtract.rate",
            count / seconds,
            f"particles of {before.shape[-1]}² pixels a second, from files to files with fits, proof, tables and "
            f"pictures, on {available_cores()} cores; the median of {_ROUNDS} runs in turn with the peer's",
            target="" if count < 1000 else "faster than RELION",
            holds=None if count < 1000 else seconds < relion_seconds,
            peer=f"{relion}, the faster of one process and of one rank a core",
            peer_value=count / relion_seconds,
            ratio=relion_seconds / seconds,
        )
        yield Figure(
            "subtract.cold_seconds",
            cold,
            f"s from typing the command to its end, {count} particles: as the rate, and Python and all libraries are "
            "loaded anew, from files in the system's cache",
            peer=relion,
            peer_value=relion_seconds,
            ratio=relion_seconds / cold,
        )


def _time_in_turn(case: Case, rounds: int) -> tuple[float, float, dict[str, float]]:
    """Median seconds of our step, of our command, and by name of RELION's program in one process and with ranks."""
    ours: list[float] = []
    commands: list[float] = []
    peers: dict[str, list[float]] = {}
    ranks = f"relion_particle_subtract_mpi, {available_cores()} ranks"
    for _ in range(rounds):
        for folder in ("sub", "command", "relion", "ranks"):
            shutil.rmtree(case.folder / folder, ignore_errors=True)
        started = time.perf_counter()
        _subtract(case)
        ours.append(time.perf_counter() - started)
        commands.append(_run_command(case))
        peers.setdefault("relion_particle_subtract, one process", []).append(subtract_with_relion(case))
        taken = subtract_with_ranks(case)
        if taken is not None:
            peers.setdefault(ranks, []).append(taken)
    medians = {name: float(np.median(taken)) for name, taken in peers.items()}
    return float(np.median(ours)), float(np.median(commands)), medians


def _run_command(case: Case) -> float:
    """Subtract as the user does, by the command in a process of its own, and return its seconds."""
    command = [sys.executable, "-m", "verglas", "subtract", "particles.star", "--map", "map.mrc"]
    command += ["--remove", "remove.mrc", "--out", "command", "--device", "cpu", "--quiet"]
    # Where the package is installed, its modules are compiled once, whatever this process was told.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    subprocess.run(command, cwd=case.folder, env=environment, check=True)
    return time.perf_counter() - started


def _share(first: npt.NDArray[Any], second: npt.NDArray[Any], whole: npt.NDArray[Any]) -> float:
    return float(np.vdot(first.astype(float), second.astype(float)) / (whole.astype(float) ** 2).sum())


def _subtract(case: Case, out: str = "sub", **changes: Any) -> Summary:
    given: dict[str, Any] = {
        "particles": "particles.star",
        "map": "map.mrc",
        "remove": "remove.mrc",
    } | changes
    paths: dict[str, Any] = {
        name: case.folder / value if isinstance(value, str) else value for name, value in given.items()
    }
    report = run_step(SUBTRACT_STEP, SubtractParams(**paths), case.folder / out, options=QUIET)
    if report.failed or report.summary is None:
        raise RuntimeError(f"subtract failed: {report.failed}")
    return report.summary


def prepare_relion(case: Case) -> None:
    """Make what RELION's program takes reference and scales from: a refinement with the true map.

    One iteration with fixed poses finds a scale for every micrograph, and the true map then takes the place of its
    reference.
    """
    folder = case.folder
    (folder / "refine").mkdir()
    refine = "relion_refine --i particles.star --ref map.mrc --ctf --iter 1 --skip_align --o refine/run --K 1"
    more = "--particle_diameter 300 --tau2_fudge 4 --pad 2 --norm --scale --pool 30 --dont_combine_weights_via_disc"
    run_relion(f"{refine} {more} --j {available_cores()}".split(), folder)
    shutil.copyfile(folder / "map.mrc", folder / "refine/run_it001_class001.mrc")


def subtract_with_relion(case: Case) -> float:
    """Run RELION's program on what `prepare_relion` made, and return its seconds."""
    command = ["relion_particle_subtract", "--i", "refine/run_it001_optimiser.star", "--mask", "stays.mrc"]
    started = time.perf_counter()
    run_relion([*command, "--o", "relion/"], case.folder)
    return time.perf_counter() - started


def subtract_with_ranks(case: Case) -> float | None:
    """Time RELION's program with one rank a core, on what `prepare_relion` made; none where it fails."""
    if shutil.which("mpirun") is None or shutil.which("relion_particle_subtract_mpi") is None:
        return None
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", str(available_cores())]
    command += [
        "relion_particle_subtract_mpi",
        "--i",
        "refine/run_it001_optimiser.star",
        "--mask",
        "stays.mrc",
    ]
    started = time.perf_counter()
    try:
        run_relion([*command, "--o", "ranks/"], case.folder)
    except RuntimeError:
        return None
    return time.perf_counter() - started


def _follow_up(case: Case) -> Iterator[Figure]:
    """RELION reconstructs the result, and revert brings the table back."""
    folder = case.folder
    blocks = read_star(folder / "particles.star")
    table = get_table(blocks, "particles", "particles.star").copy()
    write_mrc(
        folder / "ideal.mrcs",
        read_mrc(folder / "particles.mrcs") - case.removed,
        voxel_size_angstrom=case.pixel_size_angstrom,
        is_stack=True,
    )
    table["rlnImageName"] = [f"{row + 1:06d}@ideal.mrcs" for row in range(len(table))]
    write_star(folder / "ideal.star", {**blocks, "particles": table})
    maps = []
    for star, name in (("sub/particles.star", "after"), ("ideal.star", "ideal")):
        run_relion(["relion_reconstruct", "--i", star, "--o", f"{name}.mrc", "--ctf"], folder)
        maps.append(read_mrc(folder / f"{name}.mrc").ravel())
    agreement = float(np.corrcoef(maps[0], maps[1])[0, 1])
    yield Figure(
        "subtract.relion_reconstructs",
        agreement,
        "correlation of what relion_reconstruct makes of the result and of the images less the true removed part",
        target="at least 0.99",
        holds=agreement >= 0.99,
    )
    params = SubtractRevertParams(particles=folder / "sub/particles.star", job=folder / "sub")
    run_step(SUBTRACT_REVERT_STEP, params, folder / "revert", options=QUIET)
    same = (folder / "revert/particles.star").read_bytes() == (folder / "particles.star").read_bytes()
    yield Figure("subtract.revert_exact", float(same), "1 is yes", target="1", holds=same)


def _plant_failures(case: Case) -> Iterator[Figure]:
    blocks = read_star(case.folder / "particles.star")
    table = get_table(blocks, "particles", "particles.star").copy()
    table["rlnPhaseShift"] = 180.0
    write_star(case.folder / "flipped.star", {**blocks, "particles": table})
    mask = read_mrc(case.folder / "remove.mrc")
    moved = np.roll(mask, round(40 / case.pixel_size_angstrom), axis=1)
    write_mrc(case.folder / "moved.mrc", moved, voxel_size_angstrom=case.pixel_size_angstrom)
    for name, changes, failed in (
        ("good", {}, False),
        ("ctf_sign", {"particles": "flipped.star"}, True),
        ("shifted_mask", {"remove": "moved.mrc"}, True),
    ):
        verdict = str(_subtract(case, f"planted_{name}", **changes).values["verdict"].value)
        told = verdict.startswith("it did not work")
        yield Figure(
            f"subtract.verdict_{name}",
            float(told),
            "1 where the verdict is that it did not work",
            target=f"{failed:d}",
            holds=told == failed,
        )
