"""`motion` from files to files: what it writes, what it refuses, and what RELION says of the same movie."""

import json
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile

from tests.unit.motion.cases import make_bad_camera, make_movie, make_truth
from verglas.algo.motion.field import shifts_on_axes
from verglas.algo.motion.gain import turn_gain
from verglas.errors import UserError
from verglas.io.motion import read_motion
from verglas.io.mrc import read_mrc, write_mrc
from verglas.io.relion_micrographs import read_micrographs
from verglas.io.star import read_star, write_star
from verglas.steps.motion import MOTION_STEP, MotionParams
from verglas.steps.step import RunOptions, run_step

PIXEL = 1.5
SHAPE = (208, 240)
TRUTH = make_truth(6, PIXEL, drift=5.0, local=0.5)
CAMERA = make_bad_camera(SHAPE)
QUIET = RunOptions(device="cpu", quiet=True)


@pytest.fixture(scope="module")
def movies(tmp_path_factory) -> Path:
    """Two movies and the gain reference of their camera."""
    folder = tmp_path_factory.mktemp("movies")
    for seed in (1, 2):
        frames = make_movie(SHAPE, TRUTH, PIXEL, camera=CAMERA, seed=seed, counts=3.0)
        write_mrc(folder / f"m{seed}.mrcs", frames, voxel_size_angstrom=PIXEL, is_stack=True)
    write_mrc(folder / "gain.mrc", CAMERA.gain, voxel_size_angstrom=PIXEL)
    return folder


def run(folder: Path, out: Path, options: RunOptions = QUIET, **changes):
    given = {"movies": (folder / "m1.mrcs", folder / "m2.mrcs"), "gain": folder / "gain.mrc", "grid": "2x2x3"}
    return run_step(MOTION_STEP, MotionParams(**(given | changes)), out, options=options)


@pytest.fixture(scope="module")
def plain(movies, tmp_path_factory) -> Path:
    """The result of one movie alone."""
    out = tmp_path_factory.mktemp("plain")
    run(movies, out, movies=(movies / "m1.mrcs",))
    return out


def read(path: Path) -> np.ndarray:
    return read_mrc(path)[0].astype(float)


def test_all_that_can_be_written(movies, tmp_path):
    report = run(movies, tmp_path, exposure=1.0, odd_even=True, aligned_stack=True)
    assert report.done == ("m1", "m2")
    average = read(tmp_path / "averages/m1.mrc")
    odd, even = read(tmp_path / "odd/m1.mrc"), read(tmp_path / "even/m1.mrc")
    np.testing.assert_allclose(odd + even, average, atol=1e-4)
    stack = read_mrc(tmp_path / "aligned/m1.mrcs").astype(float)
    assert mrcfile.read(tmp_path / "aligned/m1.mrcs").dtype == np.float16
    np.testing.assert_allclose(stack.sum(0), average, atol=0.05)
    np.testing.assert_allclose(stack[1::2].sum(0), even, atol=0.05)
    # Electrons are neither made nor lost, and hot pixels are gone.
    frames = read_mrc(movies / "m1.mrcs") * CAMERA.gain
    assert average.mean() == pytest.approx(np.median(frames.sum(0)), rel=0.05)
    assert average.max() < 5 * average.mean()
    assert read(tmp_path / "dose_weighted/m1.mrc").mean() == pytest.approx(average.mean(), rel=0.01)
    values = json.loads((tmp_path / "items/m1.json").read_text())["values"]
    assert values["defects"] >= 0.9 * (CAMERA.hot.sum())
    model = read_motion(tmp_path / "motion/m1.json")
    line = np.array([0.5])
    found = shifts_on_axes(model, None, line, line)[:, 0, 0, ::-1]
    wanted = TRUTH.trajectory_angstrom - TRUTH.trajectory_angstrom[0]
    assert np.abs(found - wanted).max() < 0.5 * PIXEL
    micrographs = read_micrographs(tmp_path / "micrographs.star")
    assert micrographs["m2"].pixel_size_angstrom == PIXEL
    for kind in ("trajectories", "drift", "spectra"):
        assert (tmp_path / f"figures/m1_{kind}.png").stat().st_size > 5000


def test_two_workers_and_a_second_run_give_the_same_bytes(movies, plain, tmp_path):
    first = (plain / "averages/m1.mrc").read_bytes()
    report = run(movies, tmp_path / "two", RunOptions(device="cpu", quiet=True, workers=2))
    assert report.done == ("m1", "m2")
    assert (tmp_path / "two/averages/m1.mrc").read_bytes() == first
    (tmp_path / "two/averages/m1.mrc").unlink()
    assert run(movies, tmp_path / "two").done == ("m1",)
    assert (tmp_path / "two/averages/m1.mrc").read_bytes() == first


def test_bad_movies_do_not_stop_the_others(movies, tmp_path):
    frames = read_mrc(movies / "m1.mrcs", None)
    broken = {
        "zero": np.concatenate([frames[:2], 0 * frames[:1]]),
        "small": frames[:, :-8],
        "nan": np.where(np.arange(frames.size).reshape(frames.shape) == 77, np.nan, frames).astype(
            np.float32
        ),
    }
    for name, data in broken.items():
        write_mrc(tmp_path / f"{name}.mrcs", data, voxel_size_angstrom=PIXEL, is_stack=True)
    (tmp_path / "cut.mrcs").write_bytes((movies / "m1.mrcs").read_bytes()[:-1000])
    paths = tuple(tmp_path / f"{name}.mrcs" for name in ("zero", "small", "nan", "cut"))
    report = run(movies, tmp_path / "out", movies=(*paths, movies / "m1.mrcs"))
    assert report.done == ("m1",)
    assert report.bugs == ()
    assert "frame 3 of movie" in report.failed["zero"]
    assert "zero everywhere" in report.failed["zero"]
    assert "expected one size" in report.failed["small"]
    assert "not finite" in report.failed["nan"]
    assert "cut.mrcs" in report.failed["cut"]


def test_wrongly_turned_gain_is_told_with_the_flags_that_mend_it(movies, tmp_path):
    write_mrc(movies / "turned.mrc", turn_gain(CAMERA.gain, 2, "none"), voxel_size_angstrom=PIXEL)
    wrong = {"gain": movies / "turned.mrc", "movies": (movies / "m1.mrcs",)}
    report = run(movies, tmp_path / "a", **wrong)
    assert "expected `gain_rotation` 180 and `gain_flip` none" in report.failed["m1"]
    assert run(movies, tmp_path / "b", gain_rotation=180, **wrong).done == ("m1",)
    np.testing.assert_array_equal(read_mrc(tmp_path / "b/gain.mrc")[0], CAMERA.gain)
    write_mrc(movies / "inverse.mrc", 1 / CAMERA.gain, voxel_size_angstrom=PIXEL)
    report = run(movies, tmp_path / "c", gain=movies / "inverse.mrc", movies=(movies / "m1.mrcs",))
    assert "expected its reciprocal" in report.failed["m1"]


def test_tiff_movie_is_the_mrc_movie(movies, plain, tmp_path):
    frames = read_mrc(movies / "m1.mrcs", None)
    tifffile.imwrite(tmp_path / "m1.tif", frames[:, ::-1], compression="lzw", photometric="minisblack")
    run(movies, tmp_path / "tif", movies=(tmp_path / "m1.tif",), pixel_size=PIXEL)
    tif, mrc = (read(folder / "averages/m1.mrc") for folder in (tmp_path / "tif", plain))
    np.testing.assert_array_equal(tif, mrc)


def test_cropping_and_frame_range(movies, tmp_path):
    run(movies, tmp_path, movies=(movies / "m1.mrcs",), factor=1.5, first_frame=2, last_frame=5)
    header = mrcfile.open(tmp_path / "averages/m1.mrc", header_only=True)
    assert (header.header.ny, header.header.nx) == (138, 160)
    assert header.voxel_size.x == pytest.approx(PIXEL * 240 / 160, rel=1e-4)
    header.close()
    assert len(read_motion(tmp_path / "motion/m1.json")) == 4
    star = read_star(tmp_path / "motion/m1.star")
    assert star["general"]["rlnMicrographStartFrame"] == 2
    assert star["global_shift"]["rlnMicrographFrameNumber"].tolist() == [2, 3, 4, 5]
    with pytest.raises(UserError, match="4x4x5 or 1x1x8; got '3x3'"):
        run(movies, tmp_path / "bad", grid="3x3")
    report = run(movies, tmp_path / "late", first_frame=9)
    assert "has 6 frames" in report.failed["m1"]


def test_movies_of_a_tilt_series_by_its_mdoc(movies, tmp_path):
    text = f"PixelSpacing = {PIXEL}\nVoltage = 200\n\n"
    for number, name in enumerate(("m1.mrcs", "gone.mrcs")):
        text += f"[ZValue = {number}]\nTiltAngle = {3 * number}\nSubFramePath = X:\\frames\\{name}\n\n"
    (tmp_path / "TS_01.mdoc").write_text(text)
    report = run(movies, tmp_path / "out", movies=(tmp_path / "TS_01.mdoc",), frames=movies)
    assert report.done == ("m1",)
    assert "TS_01" in report.failed["gone"]
    optics = read_star(tmp_path / "out/micrographs.star")["optics"]
    assert optics["rlnVoltage"].tolist() == [200]


@pytest.mark.relion
def test_relion_finds_the_same_way_and_writes_the_same_labels(
    movies, tmp_path, relion: Callable[..., str]
) -> None:
    run(movies, tmp_path / "ours", movies=(movies / "m1.mrcs",), exposure=1.0)
    for name in ("m1.mrcs", "gain.mrc"):
        (tmp_path / name).write_bytes((movies / name).read_bytes())
    optics = {"rlnOpticsGroupName": ["opticsGroup1"], "rlnOpticsGroup": [1]}
    optics |= {"rlnMicrographOriginalPixelSize": [PIXEL], "rlnVoltage": [300.0]}
    optics |= {"rlnSphericalAberration": [2.7], "rlnAmplitudeContrast": [0.1]}
    import pandas as pd

    movie = pd.DataFrame({"rlnMicrographMovieName": ["m1.mrcs"], "rlnOpticsGroup": [1]})
    write_star(tmp_path / "movies.star", {"optics": pd.DataFrame(optics), "movies": movie})
    told = "--i movies.star --o theirs/ --use_own --patch_x 1 --patch_y 1 --gainref gain.mrc --bfactor 150"
    relion(
        "relion_run_motioncorr", *told.split(), "--angpix", PIXEL, "--dose_per_frame", 1, "--dose_weighting"
    )
    ours = read_star(tmp_path / "ours/motion/m1.star")
    theirs = read_star(tmp_path / "theirs/m1.star")
    labels = ["rlnMicrographShiftX", "rlnMicrographShiftY"]
    difference = ours["global_shift"][labels].to_numpy() - theirs["global_shift"][labels].to_numpy()
    assert np.abs(difference - difference.mean(0)).max() < 0.5
    missing = set(theirs["general"]) - set(ours["general"])
    assert missing == set()
