"""The reconstruct step: 3-D CTF, regions, particles, what is written down, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from verglas.api import reconstruct
from verglas.errors import UserError
from verglas.io.mrc import read_mrc, read_mrc_header
from verglas.io.regions import read_regions, write_regions
from verglas.io.relion_particles import write_particles
from verglas.io.relion_tilt_series import read_tilt_series
from verglas.io.relion_tomograms import read_tomograms
from verglas.io.weights import read_weights
from verglas.model import Particles, Region
from verglas.steps.reconstruct import RECONSTRUCT_STEP, ReconstructParams
from verglas.steps.simulate import SIMULATE_STEP, SimulateParams
from verglas.steps.step import RunOptions, run_step

QUIET = RunOptions(quiet=True, device="cpu")


@pytest.fixture(scope="module")
def star(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reconstruct") / "simulate"
    params = SimulateParams(
        image_size=(96, 80), pixel_size=10.0, thickness=500.0, tilt_step=20.0, copies=3, vesicles=0, gold=0
    )
    assert not run_step(SIMULATE_STEP, params, folder, options=QUIET).failed
    return folder / "truth/tilt_series.star"


def run(star, out, **parameters):
    params = ReconstructParams(tilt_series=star, **parameters)
    return run_step(RECONSTRUCT_STEP, params, out, options=QUIET)


def make_particles(places):
    count = len(places)
    return Particles(
        np.full(count, "TS_01"), np.array(places), np.zeros((count, 3)), np.zeros(count), np.full(count, np.nan),
        pd.DataFrame(),
    )  # fmt: skip


def test_slabs_are_written_with_their_weights(star, tmp_path):
    report = run(star, tmp_path / "a", ctf="3d", defocus_step=200.0, halves=True, ice_thickness=750.0)
    assert not report.failed
    (tomogram,) = read_tomograms(tmp_path / "a/tomograms.star")
    whole, first, second = (read_mrc(path) for path in (tomogram.path, *tomogram.half_paths))
    np.testing.assert_allclose((first + second) / 2, whole, atol=1e-5)
    weights = read_weights(tomogram.weights_path)
    assert weights.ctf == "3d"
    assert weights.dose_weighted
    # 600 Å in slabs of 200, whose faces meet; even numbers of voxels lie half a voxel low.
    assert [(s.low_angstrom, s.high_angstrom) for s in weights.surfaces] == [
        (-305, -105),
        (-105, 95),
        (95, 295),
    ]
    assert [s.coefficients[0] for s in weights.surfaces] == [-205, -5, 195]
    series = read_tilt_series(star)["TS_01"]
    # Halves are read one after the other; the weights say which view is which.
    assert sorted(weights.views.tolist()) == list(range(len(series)))
    tilts = series.y_tilt_deg[weights.views]
    path = 1 / np.cos(np.deg2rad(tilts)) / np.cos(np.deg2rad(series.x_tilt_deg[weights.views]))
    np.testing.assert_allclose(weights.view_factors, np.exp(-750 / 4000 * (path - path.min())), rtol=1e-6)
    assert (weights.view_deviations > 0).all()
    assert report.summary.values["slabs"].value == 3


def test_the_facade_makes_the_same_volume(star, tmp_path):
    run(star, tmp_path / "a", ctf="3d", defocus_step=150.0)
    series = read_tilt_series(star)["TS_01"]
    volume = reconstruct(series, ctf="3d", defocus_step=150.0, device="cpu")
    np.testing.assert_allclose(volume.values, read_mrc(tmp_path / "a/tomograms/TS_01.mrc"), atol=1e-6)
    with pytest.raises(UserError, match="`regions` is about files"):
        reconstruct(series, regions=tmp_path)


@pytest.mark.parametrize("ctf", ["multiply"])
def test_regions_are_cut_from_the_same_volume(star, tmp_path, ctf):
    regions = [
        Region("TS_01", "left", (-150.0, 50.0, 20.0), (300.0, 200.0, 200.0)),
        Region("TS_01", "right", (203.0, -52.0, -18.0), (150.0, 150.0, 100.0)),
    ]
    write_regions(tmp_path / "regions.star", regions)
    assert read_regions(tmp_path / "regions.star") == regions
    run(star, tmp_path / "whole", ctf=ctf, float16=True)
    report = run(star, tmp_path / "parts", ctf=ctf, regions=tmp_path / "regions.star", float16=True)
    assert report.done == ("TS_01_left", "TS_01_right")
    whole = read_mrc(tmp_path / "whole/tomograms/TS_01.mrc")
    tomograms = read_tomograms(tmp_path / "parts/tomograms.star")
    assert [(one.name, one.region) for one in tomograms] == [("TS_01", "left"), ("TS_01", "right")]
    for one in tomograms:
        moved = [
            round(c / 10.0) + n // 2 for c, n in zip(one.centre_angstrom[::-1], whole.shape, strict=True)
        ]
        box = tuple(slice(c - n // 2, c - n // 2 + n) for c, n in zip(moved, one.shape, strict=True))
        np.testing.assert_allclose(read_mrc(one.path), whole[box], atol=2e-3)
        assert read_mrc_header(one.path).shape == one.shape
    # The table is still an index of the tilt series.
    assert list(read_tilt_series(tmp_path / "parts/tomograms.star")) == ["TS_01"]


def test_particles_place_the_surfaces(star, tmp_path):
    generator = np.random.default_rng(0)
    x, y = generator.uniform(-300, 300, (2, 40))
    places = np.stack([x, y, 150 + 0.1 * x], axis=1)
    series = read_tilt_series(star)
    write_particles(tmp_path / "particles.star", make_particles(places), series)
    common = {"ctf": "3d", "defocus_step": 200.0, "particles": tmp_path / "particles.star"}
    run(star, tmp_path / "a", **common)
    weights = read_weights(tmp_path / "a/weights/TS_01.json")
    top = weights.surfaces[-1]
    assert top.particles == (places[:, 2] >= 95).sum()
    np.testing.assert_allclose(top.coefficients[:3], (150, 0.1, 0), atol=1e-3)
    assert weights.surfaces[0].coefficients[0] == -205
    assert weights.defocus_height_angstrom == pytest.approx(places[:, 2].mean(), abs=1e-3)
    run(star, tmp_path / "b", **common, defocus_at="centre")
    assert read_weights(tmp_path / "b/weights/TS_01.json").defocus_height_angstrom == 0
    assert not np.allclose(
        read_mrc(tmp_path / "a/tomograms/TS_01.mrc"), read_mrc(tmp_path / "b/tomograms/TS_01.mrc")
    )


def test_particles_outside_are_told(star, tmp_path):
    write_particles(tmp_path / "particles.star", make_particles([(0.0, 0.0, 4000.0)]), read_tilt_series(star))
    report = run(star, tmp_path / "a", ctf="3d", particles=tmp_path / "particles.star")
    assert not report.failed
    state = json.loads((tmp_path / "a/items/TS_01.json").read_text())
    assert any("no particle lies within" in warning for warning in state["warnings"])


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"defocus_step": 100.0}, "`defocus_step` is for `ctf` 3d; got `ctf` none"),
        ({"resolution": 20.0, "ctf": "flip"}, "`resolution` is for `ctf` 3d; got `ctf` flip"),
        ({"regions": "r.star", "thickness": 100.0}, "`regions` have extents of their own"),
        ({"ctf": "4d"}, "'none', 'flip', 'multiply' or '3d'"),
    ],
)
def test_what_does_not_go_together_is_refused(parameters, sentence):
    with pytest.raises(ValidationError, match=sentence):
        ReconstructParams(tilt_series="a.star", **parameters)


def test_regions_of_unknown_series_are_refused(star, tmp_path):
    write_regions(tmp_path / "r.star", [Region("TS_09", "1", (0, 0, 0), (10, 10, 10))])
    with pytest.raises(UserError, match=r"'TS_09'.*expected one of TS_01"):
        run(star, tmp_path / "a", regions=tmp_path / "r.star")
    with pytest.raises(UserError, match="positive extents"):
        Region("TS_01", "1", (0, 0, 0), (10, 0, 10))
    twice = [Region("TS_01", "1", (0, 0, 0), (10, 10, 10))] * 2
    write_regions(tmp_path / "twice.star", twice)
    with pytest.raises(UserError, match="twice"):
        read_regions(tmp_path / "twice.star")


def test_estimates_grow_with_the_slabs(star):
    few, many = (ReconstructParams(tilt_series=star, ctf="3d", defocus_step=step) for step in (1000.0, 50.0))
    flat = ReconstructParams(tilt_series=star, ctf="multiply")
    told = [RECONSTRUCT_STEP.estimate(RECONSTRUCT_STEP.list_items(one), one) for one in (flat, few, many)]
    assert told[0].memory_bytes < told[1].memory_bytes
    assert told[0].seconds <= told[1].seconds < told[2].seconds


def test_a_series_without_defocus_fails_alone(star, tmp_path):
    from verglas.io.relion_tilt_series import write_tilt_series

    series = read_tilt_series(star)["TS_01"]
    blind = replace(series, name="TS_02", defocus_u_angstrom=np.full(len(series), np.nan))
    both = write_tilt_series(tmp_path / "in", [series, blind])
    report = run(both, tmp_path / "a", ctf="3d")
    assert report.done == ("TS_01",)
    assert "has no defocus" in report.failed["TS_02"]
