"""`verglas bench motion`: the motion found in simulated movies against truth, time and memory, beside RELION's own.

RELION's `relion_run_motioncorr --use_own` gets the same files, 5 x 5 patches, the same dose weighting and as many
threads. Both programs start from files and end with the same images in files; ours draws its figures too. The sums of
odd and of even frames, which RELION 3 does not write, are made in a run of their own.

torch-motion-correction gets a smaller tilt movie, because it takes minutes for it: frames in memory that are
corrected and mended already, the same grid, and its documented way from the motion of the whole image to the sum of
corrected frames. Ours starts from the files, as above.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from verglas.algo.motion.field import shifts_on_axes
from verglas.benchmarks.harness import NO_PEER, Figure, Peak, measure_process
from verglas.benchmarks.motion_cases import SINGLE_PARTICLE, TILT, Case, make_case, make_places, measure_error
from verglas.benchmarks.peers import TORCH_MOTION_CORRECTION, run_peer
from verglas.io.motion import read_motion
from verglas.io.movie import open_movie
from verglas.io.mrc import read_mrc
from verglas.io.star import read_star, write_star
from verglas.runtime import available_cores
from verglas.steps.movie_frames import MovieFrames, read_gain

FloatArray = npt.NDArray[np.float64]

RELION = "relion_run_motioncorr"

_FRAMES = 120
"""Of all movies of a kind together, which are copies of one: starting the programs is not to make the time."""

TEAMTOMO = "torch_motion_correction"

_SEED = 11
"""None of the movies on which the program was developed."""


def run(quick: bool) -> Iterator[Figure]:
    """Correct one movie of each kind."""
    with tempfile.TemporaryDirectory(prefix="verglas-motion-") as scratch:
        # Kernels are compiled once on a machine.
        case = make_case(Path(scratch), "warm_up", TILT, 512, seed=_SEED)
        _run_ours(Path(scratch), case, [case.movie])
    for name, kind, target, size in (
        ("single_particle", SINGLE_PARTICLE, 0.25, 1536 if quick else 4096),
        ("tilt", TILT, 0.5, 2048 if quick else 4096),
    ):
        with tempfile.TemporaryDirectory(prefix="verglas-motion-") as scratch:
            case = make_case(Path(scratch), name, kind, size, seed=_SEED)
            movies = [case.movie]
            for number in range(0 if quick else _FRAMES // kind.frames - 1):
                movies.append(case.movie.with_stem(f"{name}_{number}"))
                movies[-1].hardlink_to(case.movie)
            yield from _compare(Path(scratch), name, case, movies, target, quick)
    with tempfile.TemporaryDirectory(prefix="verglas-motion-") as scratch:
        case = make_case(Path(scratch), "teamtomo", TILT, 1024 if quick else 2048, seed=_SEED)
        yield from _compare_teamtomo(Path(scratch), case, quick)


def _compare(
    folder: Path, name: str, case: Case, movies: list[Path], target: float, quick: bool
) -> Iterator[Figure]:
    ours = _run_ours(folder, case, movies)
    theirs = _run_relion(folder, case, movies) if shutil.which(RELION) else None
    places = make_places()
    error = measure_error(read_our_motion(folder / "ours", case, places), case, places)
    peer = f"{RELION} --use_own, 5 x 5 patches" if theirs else f"{RELION}: {NO_PEER}"
    other = (
        measure_error(read_relion_motion(folder / "relion", case, places), case, places) if theirs else None
    )
    height, width = case.shape
    what = f"{case.kind.frames} frames of {width} x {height}, {case.kind.exposure_e_per_a2:.3g} e/Å² each"
    yield Figure(
        f"motion.{name}_error",
        error,
        f"pixels, RMS over image and frames of {what}",
        target=f"at most {target:g}, and below the peer's",
        holds=error <= target and (other is None or error < other),
        peer=peer,
        peer_value=other,
        ratio=None if other is None else other / error,
    )
    seconds = theirs.seconds if theirs else None
    yield Figure(
        f"motion.{name}_seconds",
        ours.seconds,
        f"s for {len(movies)} of {what}, {available_cores()} cores, files to files",
        target="" if quick else "a third of the peer's",
        holds=None if quick or seconds is None else 3 * ours.seconds <= seconds,
        peer=peer,
        peer_value=seconds,
        ratio=None if seconds is None else seconds / ours.seconds,
    )
    memory = theirs.memory_bytes if theirs else None
    movie = 4 * case.kind.frames * width * height
    yield Figure(
        f"motion.{name}_memory",
        ours.memory_bytes / movie,
        "of the movie in single precision",
        # What the libraries take by themselves is more than a small movie.
        target="" if quick else "at most 1.5",
        holds=None if quick else ours.memory_bytes <= 1.5 * movie,
        peer=peer,
        peer_value=None if memory is None else memory / movie,
        ratio=None if memory is None else memory / ours.memory_bytes,
    )
    _run_ours(folder, case, movies[:1], "--odd-even", out="halves")
    yield _check_halves(folder / "halves", case)


def _compare_teamtomo(folder: Path, case: Case, quick: bool) -> Iterator[Figure]:
    ours = _run_ours(folder, case, [case.movie])
    places = make_places()
    error = measure_error(read_our_motion(folder / "ours", case, places), case, places)
    seconds, other = _ask_teamtomo(folder, case, places)
    what = f"{case.kind.frames} frames of {case.shape[1]} x {case.shape[0]}"
    peer = TEAMTOMO if other is not None else f"{TEAMTOMO}: {NO_PEER}"
    yield Figure(
        "motion.teamtomo_error",
        error,
        f"pixels, RMS over image and frames of {what}",
        target="" if quick else "below the peer's",
        holds=None if quick or other is None else error < other,
        peer=peer,
        peer_value=other,
        ratio=None if other is None else other / error,
    )
    yield Figure(
        "motion.teamtomo_seconds",
        ours.seconds,
        f"s for {what}, {available_cores()} cores, from files to files; the peer from frames in memory to their sum",
        target="" if quick else "below the peer's",
        holds=None if quick or seconds is None else ours.seconds < seconds,
        peer=peer,
        peer_value=seconds,
        ratio=None if seconds is None else seconds / ours.seconds,
    )


def _ask_teamtomo(folder: Path, case: Case, places: FloatArray) -> tuple[float | None, float | None]:
    """Seconds and error of the peer."""
    frames = MovieFrames(open_movie(case.movie), 0, case.kind.frames)
    frames.correct(frames.add_up(), read_gain(case.gain))
    np.save(
        folder / "frames.npy", np.stack([frames.prepare(i, case.shape).numpy() for i in range(frames.count)])
    )
    told = run_peer(
        TEAMTOMO,
        TORCH_MOTION_CORRECTION,
        frames=str(folder / "frames.npy"),
        pixel=case.kind.pixel_size_angstrom,
        grid=(4, 3, 3),
        patch=512,
        places=(places[:, ::-1] + 0.5).tolist(),
        workers=available_cores(),
    )
    if told is None:
        return None, None
    return told["seconds"], measure_error(np.array(told["shifts"])[..., ::-1], case, places)


def _check_halves(folder: Path, case: Case) -> Figure:
    name = case.movie.stem
    whole, odd, even = (
        read_mrc(folder / kind / f"{name}.mrc")[0].astype(float) for kind in ("averages", "odd", "even")
    )
    error = float(np.abs(odd + even - whole).max() / whole.std())
    return Figure(
        f"motion.{name}_halves",
        error,
        "largest |odd + even - average|, standard deviations of the average",
        target="at most 1e-4",
        holds=error <= 1e-4,
    )


def _run_ours(folder: Path, case: Case, movies: list[Path], *more: str, out: str = "ours") -> Peak:
    flags = ["--exposure", str(case.kind.exposure_e_per_a2), *more, "--device", "cpu"]
    command = [sys.executable, "-m", "verglas", "motion"]
    return measure_process([*command, *movies, "--gain", case.gain, *flags, "--out", folder / out])


def _run_relion(folder: Path, case: Case, movies: list[Path]) -> Peak:
    pixel = case.kind.pixel_size_angstrom
    optics = {
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnOpticsGroup": [1],
        "rlnMicrographOriginalPixelSize": [pixel],
        "rlnVoltage": [300.0],
        "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.1],
    }
    table = {"rlnMicrographMovieName": [movie.name for movie in movies], "rlnOpticsGroup": [1] * len(movies)}
    write_star(folder / "movies.star", {"optics": pd.DataFrame(optics), "movies": pd.DataFrame(table)})
    flags = f"--i movies.star --o relion/ --use_own --patch_x 5 --patch_y 5 --j {available_cores()}"
    flags += f" --bin_factor 1 --bfactor 150 --gainref {case.gain.name} --dose_weighting --save_noDW"
    flags += f" --angpix {pixel} --dose_per_frame {case.kind.exposure_e_per_a2} --voltage 300"
    return measure_process([RELION, *flags.split()], cwd=folder)


def read_our_motion(folder: Path, case: Case, places: FloatArray) -> FloatArray:
    """`(n, p, 2)` xy displacements in Å at xy places."""
    model = read_motion(folder / "motion" / f"{case.movie.stem}.json")
    return np.concatenate(
        [shifts_on_axes(model, None, place[1:] + 0.5, place[:1] + 0.5)[:, 0, :, ::-1] for place in places],
        axis=1,
    )


def read_relion_motion(folder: Path, case: Case, places: FloatArray) -> FloatArray:
    """Read the same from the STAR file of RELION's own motion correction, or from ours of that kind."""
    star = next(folder.rglob(f"{case.movie.stem}.star"))
    blocks = {name: pd.DataFrame(block) for name, block in read_star(star).items() if name != "general"}
    shifts = blocks["global_shift"][["rlnMicrographShiftX", "rlnMicrographShiftY"]].to_numpy(float)
    result = np.repeat(shifts[:, None], len(places), axis=1)
    if "local_motion_model" in blocks:
        table = blocks["local_motion_model"].sort_values("rlnMotionModelCoeffsIdx")
        coefficients = table["rlnMotionModelCoeff"].to_numpy(float).reshape(2, 6, 3)
        x, y = places.T
        space = np.stack([np.ones_like(x), x, x**2, y, y**2, x * y])
        z = np.arange(len(shifts), dtype=float)
        result += np.einsum("ckp,zp,kn->znc", coefficients, np.stack([z, z**2, z**3], axis=1), space)
    # RELION notes what brings the frames back.
    return -result * case.kind.pixel_size_angstrom
