"""The notebook facade: the same results as the commands, without their folders."""

import subprocess
import sys

import mrcfile
import numpy as np
import pytest

import verglas as vg
from verglas.errors import FileFormatError, MissingFileError, UserError
from verglas.io.mrc import read_mrc
from verglas.steps.reconstruct import RECONSTRUCT_STEP, ReconstructParams
from verglas.steps.simulate import SIMULATE_STEP, SimulateParams
from verglas.steps.step import RunOptions, run_step

QUIET = RunOptions(quiet=True)
SMALL = {
    "image_size": (64, 48),
    "pixel_size": 20.0,
    "thickness": 500.0,
    "tilt_step": 15.0,
    "copies": 4,
    "vesicles": 0,
    "gold": 2,
}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api") / "simulate"
    assert not run_step(SIMULATE_STEP, SimulateParams(**SMALL, seed=5), folder, options=QUIET).failed
    return folder


@pytest.fixture(scope="module")
def simulated():
    return vg.simulate_tilt_series("TS_01", seed=5, **SMALL)


def test_nothing_heavy_is_loaded_before_it_is_used():
    heavy = "[name for name in ('verglas.api', 'torch', 'numba') if name in sys.modules]"
    code = f"import sys, verglas; print({heavy}); verglas.reconstruct; print({heavy})"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True
    )
    assert done.stdout == "[]\n['verglas.api']\n"


def test_every_name_is_there_and_no_other():
    from verglas import api

    for name in api.__all__:
        assert getattr(vg, name) is getattr(api, name)
        assert getattr(api, name).__doc__
    with pytest.raises(AttributeError, match="'verglas' has no attribute 'np'"):
        _ = vg.np


def test_a_simulation_in_memory_is_the_one_on_disk(job, simulated):
    np.testing.assert_array_equal(simulated.images, read_mrc(job / "stacks/TS_01.mrc"))
    np.testing.assert_array_equal(simulated.density.values, read_mrc(job / "truth/volumes/TS_01.mrc"))
    truth = vg.read_tilt_series(job / "truth/tilt_series.star")["TS_01"]
    np.testing.assert_allclose(simulated.truth.x_shift_angstrom, truth.x_shift_angstrom, atol=1e-3)
    assert len(simulated.particles) == 4
    assert not simulated.series.x_shift_angstrom.any()


def test_a_tomogram_in_memory_is_the_one_on_disk(job, tmp_path):
    star = job / "truth/tilt_series.star"
    params = ReconstructParams(tilt_series=star, pixel_size=25.0, ctf="flip")
    run_step(RECONSTRUCT_STEP, params, tmp_path / "reconstruct", options=RunOptions("cpu", quiet=True))
    series = vg.read_tilt_series(star)["TS_01"]
    tomogram = vg.reconstruct(series, pixel_size=25.0, ctf="flip", device="cpu")
    on_disk = vg.read_map(tmp_path / "reconstruct/tomograms/TS_01.mrc")
    assert tomogram.voxel_size_angstrom == on_disk.voxel_size_angstrom == 25.0
    assert tomogram.values.shape == (24, 51, 38)
    np.testing.assert_allclose(tomogram.values, on_disk.values, atol=1e-5 * np.abs(on_disk.values).max())


def test_images_may_be_given_and_views_left_out(simulated):
    from dataclasses import replace

    whole = vg.reconstruct(simulated.truth, simulated.images, device="cpu")
    # Gold is the densest, and dark.
    gold = np.unravel_index(simulated.density.values.argmax(), simulated.density.values.shape)
    assert whole.values[gold] < whole.values.mean() - 4 * whole.values.std()
    selected = np.ones(len(simulated.truth), dtype=bool)
    selected[[0, 3]] = False
    marked = vg.reconstruct(replace(simulated.truth, selected=selected), simulated.images, device="cpu")
    taken = vg.reconstruct(simulated.truth.take(selected), simulated.images[selected], device="cpu")
    np.testing.assert_array_equal(marked.values, taken.values)
    assert not np.array_equal(marked.values, whole.values)


def test_what_does_not_fit_is_refused(simulated):
    with pytest.raises(UserError, match=r"`images` must be \(9, 48, 64\), .*; got \(8, 48, 64\)"):
        vg.reconstruct(simulated.truth, simulated.images[1:])
    with pytest.raises(UserError, match="`halves` is about files"):
        vg.reconstruct(simulated.truth, simulated.images, halves=True)
    with pytest.raises(ValueError, match="colour"):
        vg.reconstruct(simulated.truth, simulated.images, colour="red")
    with pytest.raises(FileNotFoundError):
        vg.reconstruct(simulated.truth)


def test_maps_are_written_and_read(tmp_path):
    values = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    vg.write_map(tmp_path / "map.mrc", vg.Map(values, 3.5))
    with mrcfile.open(tmp_path / "map.mrc", permissive=False) as file:
        np.testing.assert_array_equal(file.data, values)
        assert file.voxel_size.z == pytest.approx(3.5)
        assert file.is_volume()
    found = vg.read_map(tmp_path / "map.mrc")
    np.testing.assert_array_equal(found.values, values)
    assert found.voxel_size_angstrom == pytest.approx(3.5)
    assert vg.read_map(tmp_path / "map.mrc", 2.0).voxel_size_angstrom == 2.0


def test_a_map_without_a_voxel_size_is_refused(tmp_path):
    with mrcfile.new(tmp_path / "bare.mrc") as file:
        file.set_data(np.zeros((2, 3, 4), np.float32))
    with pytest.raises(UserError, match="tells no voxel size; expected `voxel_size_angstrom`"):
        vg.read_map(tmp_path / "bare.mrc")
    with pytest.raises(MissingFileError):
        vg.read_map(tmp_path / "none.mrc")


def test_series_are_imported_in_a_folder(job, tmp_path):
    series = vg.import_tilt_series(job / "truth/tilt_series.star", tmp_path / "import")
    truth = vg.read_tilt_series(job / "truth/tilt_series.star")
    assert list(series) == ["TS_01"]
    np.testing.assert_allclose(series["TS_01"].y_shift_angstrom, truth["TS_01"].y_shift_angstrom, atol=1e-3)
    assert (tmp_path / "import/job.json").exists()
    (tmp_path / "bad.star").write_text("data_global\n\nloop_\n_rlnTomoName\nTS_09\n")
    with pytest.raises((FileFormatError, UserError)):
        vg.import_tilt_series([tmp_path / "bad.star"], tmp_path / "bad")
