"""`preprocess`: lists in, micrographs and their table out, and a folder that fills while it runs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from verglas.benchmarks.preprocess import make_micrograph
from verglas.errors import UserError
from verglas.io.mrc import read_mrc, read_mrc_header, write_mrc
from verglas.io.star import read_star, write_star
from verglas.steps.preprocess import PREPROCESS_STEP, PreprocessParams
from verglas.steps.step import RunOptions, RunReport, run_step

QUIET = RunOptions(quiet=True)


def run(out: Path, *micrographs: Path, **parameters: object) -> RunReport:
    params = PreprocessParams(micrographs=micrographs, **parameters)  # type: ignore[arg-type]
    return run_step(PREPROCESS_STEP, params, out, options=QUIET)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(2):
        image = make_micrograph(100, seed=number)
        write_mrc(tmp_path / f"mics/m{number}.mrc", image, voxel_size_angstrom=1.6)
    return tmp_path / "mics"


def test_a_star_comes_back_with_the_true_pixel_size(folder: Path, relion: Callable[..., str]) -> None:
    optics = {"rlnOpticsGroup": [1], "rlnOpticsGroupName": ["a"], "rlnMicrographPixelSize": [0.8]}
    optics |= {"rlnVoltage": [300.0], "rlnSphericalAberration": [2.7], "rlnAmplitudeContrast": [0.1]}
    rows = {
        "rlnMicrographName": [str(folder / f"m{number}.mrc") for number in range(2)],
        "rlnMicrographNameEven": ["even.mrc"] * 2,
        "rlnOpticsGroup": [1, 1],
        "rlnDefocusU": [12000.0, 13000.0],
    }
    star = folder.parent / "micrographs.star"
    write_star(star, {"optics": pd.DataFrame(optics), "micrographs": pd.DataFrame(rows)})
    out = folder.parent / "out"
    assert run(out, star, downsample=2.5, bad_pixels=5.0).done == ("m0", "m1")
    tables = read_star(out / "micrographs.star")
    assert tables["optics"]["rlnMicrographPixelSize"].tolist() == [2.0]
    assert tables["micrographs"]["rlnDefocusU"].tolist() == [12000.0, 13000.0]
    assert "rlnMicrographNameEven" not in tables["micrographs"]
    header = read_mrc_header(out / "micrographs/m0.mrc")
    assert header.shape == (1, 40, 40)
    assert header.pixel_size_angstrom == pytest.approx(2.0)
    printed = relion(
        "relion_star_printtable", out / "micrographs.star", "data_optics", "rlnMicrographPixelSize"
    )
    assert float(printed) == 2.0


def test_json_and_files_get_a_table_of_their_own(folder: Path) -> None:
    listed = folder / "list.json"
    listed.write_text(json.dumps(["m1.mrc"]))
    out = folder.parent / "out"
    run(out, listed, folder / "m0.mrc", invert=True, float16=True, voltage=200.0)
    tables = read_star(out / "micrographs.star")
    assert tables["optics"]["rlnVoltage"].tolist() == [200.0]
    assert [Path(name).name for name in tables["micrographs"]["rlnMicrographName"]] == ["m0.mrc", "m1.mrc"]
    found = read_mrc(out / "micrographs/m1.mrc")[0]
    np.testing.assert_array_equal(found, -make_micrograph(100, seed=1))
    assert (out / "figures/m0.png").stat().st_size > 10_000


def test_a_folder_that_fills_is_done_as_it_fills(folder: Path) -> None:
    whole = (folder / "m0.mrc").read_bytes()
    (folder / "m2.mrc").write_bytes(whole[:20_000])
    out = folder.parent / "out"
    first = run(out, folder, normalise=True)
    assert first.done == ("m0", "m1")
    assert "m2" in first.failed
    assert not first.bugs
    assert not (out / "micrographs/m2.mrc").exists()
    (folder / "m2.mrc").write_bytes(whole)
    second = run(out, folder, normalise=True)
    assert second.done == ("m2",)
    assert second.skipped == ("m0", "m1")
    names = read_star(out / "micrographs.star")["micrographs"]["rlnMicrographName"]
    assert [Path(name).stem for name in names] == ["m0", "m1", "m2"]
    with pytest.raises(UserError, match="`invert`"):
        run(out, folder, normalise=True, invert=True)


def test_what_asks_for_nothing_or_for_both_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="there is nothing to do"):
        PreprocessParams(micrographs=(folder,))
    with pytest.raises(ValueError, match="one of `lowpass` and `lowpass_angstrom`"):
        PreprocessParams(micrographs=(folder,), lowpass=0.3, lowpass_angstrom=10.0)
    (folder / "bad.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="holds no list of paths"):
        run(folder.parent / "out", folder / "bad.json", invert=True)


def test_real_micrograph_with_all_ten(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "micrograph_epu/fei-extended.mrc"
    parameters = {"crop": 10, "log": True, "bad_pixels": 5.0, "invert": True, "downsample": 2.5}
    parameters |= {"denoise": 2, "gaussian": 2.0, "highpass": 0.002, "lowpass": 0.4, "normalise": True}
    report = run(tmp_path / "out", path, **parameters)
    assert report.done == ("fei-extended",)
    header = read_mrc_header(tmp_path / "out/micrographs/fei-extended.mrc")
    assert header.pixel_size_angstrom == pytest.approx(2.5 * 0.8537755, rel=1e-4)
    image = read_mrc(tmp_path / "out/micrographs/fei-extended.mrc")[0].astype(float)
    assert image.shape == (1526, 1476)
    assert image.mean() == pytest.approx(0, abs=1e-6)
    assert image.std() == pytest.approx(1, abs=1e-6)
