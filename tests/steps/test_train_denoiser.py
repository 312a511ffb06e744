"""`preprocess train` on small halves, and `preprocess` with what it writes."""

import json

import numpy as np
import pytest

from tests.unit.micrograph.test_denoiser import make_halves
from verglas.errors import UserError
from verglas.io.mrc import read_mrc, write_mrc
from verglas.steps.preprocess import PREPROCESS_STEP, PreprocessParams
from verglas.steps.step import RunOptions, run_step
from verglas.steps.train_denoiser import TRAIN_DENOISER_STEP, TrainDenoiserParams

QUIET = RunOptions(quiet=True)


@pytest.fixture
def table(tmp_path):
    """Two micrographs at 4 Å a pixel, with their halves."""
    rows = []
    for index in range(2):
        _, halves = make_halves(index, size=200)
        for name, image in zip(("odd", "even", "all"), (*halves, sum(halves)), strict=True):
            write_mrc(tmp_path / f"{name}{index}.mrc", image.numpy(), voxel_size_angstrom=4.0)
        rows.append(f"all{index}.mrc odd{index}.mrc even{index}.mrc")
    names = "".join(f"_rlnMicrographName{half}\n" for half in ("", "Odd", "Even"))
    path = tmp_path / "micrographs.star"
    path.write_text(f"data_micrographs\nloop_\n{names}" + "\n".join(rows) + "\n")
    return path


def test_weights_come_again_and_serve_preprocess(table, tmp_path):
    for name in ("one", "other"):
        params = TrainDenoiserParams(micrographs=table, steps=4)
        assert run_step(TRAIN_DENOISER_STEP, params, tmp_path / name, options=QUIET).failed == {}
    weights = [(tmp_path / name / "weights.npz").read_bytes() for name in ("one", "other")]
    assert weights[0] == weights[1]
    values = json.loads((tmp_path / "one/items/denoiser.json").read_text())["values"]
    assert values["micrographs"] == 2
    assert values["pixel_size_angstrom"] == pytest.approx(4.0)
    assert 0 < values["left_network"] < 2 * values["left_linear"]

    done = PreprocessParams(micrographs=(table,), denoiser=tmp_path / "one/weights.npz")
    assert run_step(PREPROCESS_STEP, done, tmp_path / "clean", options=QUIET).failed == {}
    before, after = read_mrc(tmp_path / "all0.mrc")[0], read_mrc(tmp_path / "clean/micrographs/all0.mrc")[0]
    assert after.std() < 0.7 * before.std()
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.4

    small = PreprocessParams(micrographs=(table,), downsample=2, denoiser=tmp_path / "one/weights.npz")
    failed = run_step(PREPROCESS_STEP, small, tmp_path / "small", options=QUIET).failed
    assert all("those of the image are 8 Å" in text for text in failed.values())
    assert len(failed) == 2


def test_a_table_without_halves_is_refused(table, tmp_path):
    lone = tmp_path / "lone.star"
    lone.write_text("data_micrographs\nloop_\n_rlnMicrographName\nall0.mrc\n")
    with pytest.raises(UserError, match="names no sums of odd and of even frames"):
        run_step(TRAIN_DENOISER_STEP, TrainDenoiserParams(micrographs=lone), tmp_path / "out", options=QUIET)


def test_one_way_of_denoising_at_a_time(table):
    with pytest.raises(ValueError, match="expected one of `denoise` and `denoiser`"):
        PreprocessParams(micrographs=(table,), denoise=50, denoiser=table)
