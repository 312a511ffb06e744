"""`ctf` of single images: tables that RELION reads, pictures, movies, and what is refused."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.unit.io.test_movie import place_electrons, render, write_eer
from verglas.benchmarks.ctf_cases import Case, make_case
from verglas.errors import UserError
from verglas.io.mrc import read_mrc, write_mrc
from verglas.io.star import read_star, write_star
from verglas.jobs import JobFolder, read_item
from verglas.steps.ctf import CTF_STEP, CtfParams
from verglas.steps.step import RunOptions, RunReport, run_step

QUIET = RunOptions(quiet=True)
SIZE, PIXEL = 512, 2.0


def run(out: Path, *inputs: Path, **parameters: object) -> RunReport:
    return run_step(CTF_STEP, CtfParams(inputs=inputs, **parameters), out, options=QUIET)  # type: ignore[arg-type]


def values_of(out: Path, name: str) -> dict[str, float]:
    item = read_item(JobFolder(out).item(name))
    assert item is not None
    return item.values


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(1, SIZE, tilted=False, exposures=(40.0, 41.0), pixel_size_angstrom=PIXEL)


@pytest.fixture(scope="module")
def job(case: Case, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunReport]:
    """A good micrograph beside several that cannot be used."""
    folder = tmp_path_factory.mktemp("ctf_images")
    write_mrc(folder / "good.mrc", case.image, voxel_size_angstrom=PIXEL)
    write_mrc(folder / "zero.mrc", np.zeros_like(case.image), voxel_size_angstrom=PIXEL)
    nan = case.image.copy()
    nan[5, 5] = np.nan
    write_mrc(folder / "nan.mrc", nan, voxel_size_angstrom=PIXEL)
    write_mrc(folder / "coarse.mrc", case.image, voxel_size_angstrom=40.0)
    (folder / "short.mrc").write_bytes((folder / "good.mrc").read_bytes()[:50_000])
    (folder / "empty.mrc").write_bytes(b"")
    names = [*(f"{name}.mrc" for name in ("good", "zero", "nan", "short", "empty", "coarse")), "absent.mrc"]
    optics = {
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnOpticsGroup": [1],
        "rlnVoltage": [300.0],
        "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.1],
    }
    import pandas as pd

    table = {
        "rlnMicrographName": names,
        "rlnOpticsGroup": [1] * len(names),
        "rlnAccumMotionTotal": list(range(len(names))),
    }
    write_star(
        folder / "micrographs.star", {"optics": pd.DataFrame(optics), "micrographs": pd.DataFrame(table)}
    )
    return folder / "out", run(folder / "out", folder / "micrographs.star")


def test_defocus_is_that_of_the_simulation(case: Case, job: tuple[Path, RunReport]) -> None:
    out, report = job
    assert report.done == ("good",)
    found = values_of(out, "good")
    assert abs(found["defocus_angstrom"] - case.defocus_angstrom) < 150
    assert found["confidence"] > 0.5
    assert found["fit_resolution_angstrom"] < 8


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("zero", "is zero everywhere"),
        ("nan", "not finite"),
        ("short", "bytes"),
        ("empty", "empty.mrc"),
        ("coarse", "40 Å per pixel"),
        ("absent", "absent.mrc"),
    ],
)
def test_each_bad_image_is_told_in_one_sentence(job: tuple[Path, RunReport], name: str, said: str) -> None:
    _, report = job
    assert said in report.failed[name]
    assert name not in report.bugs
    assert "\n" not in report.failed[name]


def test_table_keeps_the_columns_of_the_input(case: Case, job: tuple[Path, RunReport]) -> None:
    out, _ = job
    blocks = read_star(out / "micrographs_ctf.star")
    row = blocks["micrographs"].iloc[0]  # type: ignore[union-attr]
    assert len(blocks["micrographs"]) == 1
    assert row["rlnAccumMotionTotal"] == 0
    u, v = row["rlnDefocusU"], row["rlnDefocusV"]
    assert u >= v
    assert row["rlnCtfAstigmatism"] == pytest.approx(u - v)
    assert abs((u + v) / 2 - case.defocus_angstrom) < 150
    assert row["rlnCtfImage"].endswith("ctf/good.ctf:mrc")
    # Thin ice says nothing of its thickness.
    assert np.isnan(row["rlnMicrographIceThickness"])
    assert np.isnan(row["vglSampleThicknessError"])


@pytest.mark.relion
def test_relion_reads_the_table(job: tuple[Path, RunReport], relion: Path) -> None:
    out, _ = job
    labels = ["rlnDefocusU", "rlnDefocusAngle", "rlnCtfMaxResolution", "rlnCtfFigureOfMerit"]
    command = ["relion_star_printtable", str(out / "micrographs_ctf.star"), "data_micrographs", *labels]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    values = values_of(out, "good")
    keys = ("defocus_u_angstrom", "defocus_angle_deg", "fit_resolution_angstrom", "merit")
    assert [float(one) for one in told] == pytest.approx([values[key] for key in keys], rel=1e-3)


def test_picture_has_data_and_model_that_agree(job: tuple[Path, RunReport]) -> None:
    out, _ = job
    picture = read_mrc(out / "ctf/good.ctf")[0]
    n = len(picture)
    middle = n // 2
    y, x = np.mgrid[:n, :n] - middle
    radius = np.hypot(y, x) / n
    # Rings of 20 to 8 Å; a half turned by half a turn has the same rings.
    pixel = (n and SIZE * PIXEL) and 2.0
    ring = (radius > pixel / 20) & (radius < pixel / 8)
    right, left = ring & (x > 0), ring & (x < 0)
    steps = np.round(radius * n).astype(int)
    curves = [
        np.bincount(steps[half], picture[half], n) / np.maximum(np.bincount(steps[half], minlength=n), 1)
        for half in (right, left)
    ]
    used = np.bincount(steps[right], minlength=n) > 0
    assert np.corrcoef(curves[0][used], curves[1][used])[0, 1] > 0.6


def test_curves_and_figures_are_written(job: tuple[Path, RunReport]) -> None:
    out, _ = job
    record = json.loads((out / "ctf/good.json").read_text())
    assert np.shape(record["defocus_angstrom"]) == (1, 2, 2)
    assert len(record["ripple"]) == len(record["fit"]) == len(record["frequency_per_angstrom"])
    for kind in ("fit", "surface"):
        assert (out / f"figures/good_{kind}.png").stat().st_size > 10_000


def test_a_tilt_is_found_with_its_axis() -> None:
    from verglas.benchmarks.ctf import estimate_one

    case = make_case(5, 1024, tilted=True, exposures=(40.0, 41.0))
    found = estimate_one(case.image, case.optics)
    assert abs(found.defocus_angstrom - case.defocus_angstrom) < 300
    assert abs(found.tilt_deg - case.tilt_deg) < 8
    assert not found.flagged


def test_counts_alone_are_flagged() -> None:
    from verglas.benchmarks.ctf import estimate_one
    from verglas.benchmarks.ctf_cases import make_empty_image
    from verglas.model import Optics

    assert estimate_one(make_empty_image(1, 640), Optics(1.5)).flagged


def test_movie_by_the_sum_and_by_its_frames(case: Case, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    gain = rng.uniform(0.7, 1.4, (SIZE, SIZE)).astype(np.float32)
    frames = rng.poisson(np.maximum(case.image, 0)[None] / 4 / gain, (4, SIZE, SIZE)).astype(np.float32)
    write_mrc(tmp_path / "movie.mrcs", frames, voxel_size_angstrom=PIXEL, is_stack=True)
    write_mrc(tmp_path / "gain.mrc", gain, voxel_size_angstrom=PIXEL)
    write_mrc(tmp_path / "small.mrc", gain[:64, :64], voxel_size_angstrom=PIXEL)
    corrected = {"gain": tmp_path / "gain.mrc"}
    run(tmp_path / "sum", tmp_path / "movie.mrcs", **corrected)
    run(tmp_path / "frames", tmp_path / "movie.mrcs", spectra="frames", grid="1x1x2", **corrected)
    report = run(tmp_path / "wrong", tmp_path / "movie.mrcs", gain=tmp_path / "small.mrc")
    assert "has 64 x 64 pixels; expected 512 x 512" in report.failed["movie"]
    for kind in ("sum", "frames"):
        found = values_of(tmp_path / kind, "movie")
        assert abs(found["defocus_angstrom"] - case.defocus_angstrom) < 300
    record = json.loads((tmp_path / "frames/ctf/movie.json").read_text())
    assert np.shape(record["defocus_angstrom"]) == (2, 1, 1)


def test_eer_movie_is_the_mrc_movie_of_its_frames(tmp_path: Path) -> None:
    electrons = place_electrons(6, 128, 128, 4000)
    write_eer(tmp_path / "movie.eer", electrons, 128, 128)
    # Two raw frames make one, of two pixels along the side of each of the camera's.
    frames = render(electrons, (3, 256, 256), (2, 2)).astype(np.float32)
    write_mrc(tmp_path / "movie.mrcs", frames, voxel_size_angstrom=PIXEL, is_stack=True)
    found = []
    for name, more in (("movie.eer", {"eer_frames": 2, "eer_upsampling": 2}), ("movie.mrcs", {})):
        out = tmp_path / f"{name}_out"
        report = run(out, tmp_path / name, pixel_size=PIXEL, tile=384.0, **more)
        assert report.done == ("movie",), report.failed
        found.append(values_of(out, "movie"))
    assert found[0] == found[1]
    # There is no signal.
    assert found[0]["confidence"] < 0.5
    report = run(tmp_path / "none", tmp_path / "movie.eer", pixel_size=PIXEL)
    assert "expected `eer_frames_per_fraction`" in report.failed["movie"]


def test_phase_shift_is_found(tmp_path: Path) -> None:
    from dataclasses import replace

    import torch

    from verglas.algo.ctf.micrograph import ImageSearch, estimate_image
    from verglas.algo.ctf.spectra import measure_cells
    from verglas.algo.ctf.tiles import Band
    from verglas.algo.simulation.movies import simulate_micrograph
    from verglas.algo.simulation.specimen import build_specimen
    from verglas.algo.simulation.views import Conditions, View
    from verglas.model import Optics

    side = SIZE * PIXEL
    view = View(np.eye(4), 9000.0, 8600.0, 20.0, phase_shift_deg=70.0, exposure_e_per_a2=60.0)
    image = simulate_micrograph(
        build_specimen("phase", (side, side, 300.0), [], seed=1),
        view,
        (SIZE, SIZE),
        Optics(PIXEL),
        conditions=Conditions(ice_noise=True, b_factor_a2=50.0, layer_angstrom=100.0),
        seed=2,
    )
    cells = measure_cells(torch.from_numpy(image), PIXEL, Band(30.0, 5.0), "phase")
    search = ImageSearch(nodes=(1, 1, 1), with_phase=True)
    found = estimate_image(cells, Optics(PIXEL), search)
    assert abs((found.phase_shift_deg - 70.0 + 90) % 180 - 90) < 12
    assert abs(sum(found.principal[:2]) / 2 - 8800.0) < 200
    known = estimate_image(cells, Optics(PIXEL), replace(search, with_phase=False, phase_shift_deg=70.0))
    assert abs(sum(known.principal[:2]) / 2 - 8800.0) < 100


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"grid": "2x2"}, "`grid` must be"),
        ({"grid": "1x1x2"}, "expected `spectra` frames"),
        ({"lowest_defocus": 3.0, "highest_defocus": 2.0}, "`lowest_defocus` must be less"),
    ],
)
def test_parameters_that_cannot_be(tmp_path: Path, parameters: dict[str, object], said: str) -> None:
    write_mrc(tmp_path / "one.mrc", np.zeros((64, 64), np.float32), voxel_size_angstrom=1.0)
    with pytest.raises(UserError, match=said):
        run(tmp_path / "out", tmp_path / "one.mrc", **parameters)
