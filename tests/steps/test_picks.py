"""The picks step: the same molecules from every program's file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from verglas.errors import UserError
from verglas.io.cryosparc import write_cs
from verglas.io.emclarity_motives import particles_to_emclarity, write_motives
from verglas.io.imod_model import make_imod_model, write_imod_model
from verglas.io.mrc import write_mrc
from verglas.io.relion_particles import read_particles, write_particles
from verglas.io.relion_tilt_series import write_tilt_series
from verglas.io.relion_tomograms import write_tomograms
from verglas.io.star import write_star
from verglas.model import ImageReference, Optics, Particles, TiltSeries, Tomogram
from verglas.ops.rotation import euler_to_matrices
from verglas.steps.picks import PICKS_STEP, PicksParams, emclarity_geometry
from verglas.steps.step import RunOptions, run_step

QUIET = RunOptions(quiet=True, device="cpu")
SHAPE = (30, 50, 40)
VOXEL = 20.0
PLACES = np.array([[10.0, 20.0, 8.0], [30.0, 12.5, 14.0], [20.0, 25.0, 15.0]])
"""xyz voxels from 0."""


@pytest.fixture
def folder(tmp_path):
    series = [
        TiltSeries(
            name=name, optics=Optics(10.0), image_shape=(100, 80), images=(ImageReference(Path("s.mrc"), 0),),
            nominal_tilt_deg=np.zeros(1),
        )
        for name in ("TS_1", "TS_2")
    ]  # fmt: skip
    write_tilt_series(tmp_path, series)
    tomograms = []
    for one in series:
        write_mrc(
            tmp_path / f"{one.name}.mrc",
            np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32),
            voxel_size_angstrom=VOXEL,
        )
        tomograms.append(Tomogram(one.name, tmp_path / f"{one.name}.mrc", SHAPE, VOXEL, (100.0, 0.0, 0.0)))
    entries = [(one, tmp_path / f"tilt_series/{one.name}.star") for one in series]
    write_tomograms(tmp_path / "tomograms.star", tomograms, entries)
    return tmp_path


def expected():
    return (PLACES - np.array([20, 25, 15])) * VOXEL + np.array([100.0, 0.0, 0.0])


def make_particles():
    angles = np.array([[10.0, 20.0, 30.0], [-100.0, 80.0, 5.0], [0.0, 0.0, 40.0]])
    return Particles(
        np.full(3, "TS_2"), expected(), angles, np.array([1, 2, 1]), np.array([0.5, 0.4, 0.3]), pd.DataFrame()
    )


def run(folder, *files, **options):
    params = PicksParams(tomograms=folder / "tomograms.star", picks=files, **options)
    out = folder / f"out_{files[0].stem}"
    report = run_step(PICKS_STEP, params, out, options=QUIET)
    if report.failed:
        raise UserError(str(next(iter(report.failed.values()))))
    return read_particles(out / "particles.star"), out


def test_relion_star(folder):
    write_particles(folder / "centred.star", make_particles())
    table = pd.DataFrame(
        {
            "rlnTomoName": ["TS_2"] * 3,
            **dict(zip(("rlnCoordinateX", "rlnCoordinateY", "rlnCoordinateZ"), PLACES.T, strict=True)),
        }
    )
    write_star(folder / "corner.star", {"particles": table})
    found, out = run(folder, folder / "centred.star")
    np.testing.assert_allclose(found.positions_angstrom, expected(), atol=1e-4)
    np.testing.assert_allclose(found.angles_deg, make_particles().angles_deg, atol=1e-4)
    assert (out / "figures/centred_picks.png").exists()
    found, _ = run(folder, folder / "corner.star", pixel_size=VOXEL)
    np.testing.assert_allclose(found.positions_angstrom, expected(), atol=1e-4)


def test_emclarity_csv(folder):
    tomogram = Tomogram("TS_2", Path("x.mrc"), SHAPE, VOXEL, (100.0, 0.0, 0.0))
    motives = particles_to_emclarity(
        make_particles(), emclarity_geometry(tomogram, 10.0), pixel_size_angstrom=10.0
    )
    write_motives(folder / "TS_2_bin2.csv", motives)
    found, _ = run(folder, folder / "TS_2_bin2.csv")
    assert set(found.tomogram_names) == {"TS_2"}
    np.testing.assert_allclose(found.positions_angstrom, expected(), atol=0.01)
    np.testing.assert_allclose(found.score, [0.5, 0.4, 0.3])


def test_imod_models_and_points(folder):
    """3dmod shows pixel 0 from 0 to 1 in x and y."""
    points = PLACES + np.array([0.5, 0.5, 0.0])
    write_imod_model(folder / "TS_2.mod", make_imod_model([points], SHAPE[::-1]))
    found, _ = run(folder, folder / "TS_2.mod")
    np.testing.assert_allclose(found.positions_angstrom, expected(), atol=0.01)
    np.savetxt(folder / "other.txt", points, "%12.2f")
    found, _ = run(folder, folder / "other.txt", tomogram="TS_2")
    np.testing.assert_allclose(found.positions_angstrom, expected(), atol=0.2)
    write_imod_model(folder / "TS_1.mod", make_imod_model([points], (512, 512, 10)))
    with pytest.raises(UserError, match="drawn on an image of"):
        run(folder, folder / "TS_1.mod")


def test_dynamo_tables(folder):
    """A table by hand: places from 1, shifts added; Rz(narot) Rx(tilt) Rz(tdrot) takes specimen to reference."""
    table = np.zeros((3, 40))
    table[:, 0] = np.arange(1, 4)
    table[:, 3:6] = [0.25, -0.5, 0.75]
    table[:, 6:9] = [[20.0, 50.0, -70.0], [0.0, 90.0, 0.0], [35.0, 0.0, 0.0]]
    table[:, 9] = [0.9, 0.8, 0.7]
    table[:, 19] = [2, 2, 1]
    table[:, 23:26] = PLACES + 1 - table[:, 3:6]
    np.savetxt(folder / "picks.tbl", table, fmt="%.5g")
    found, _ = run(folder, folder / "picks.tbl")
    assert found.tomogram_names.tolist() == ["TS_2", "TS_2", "TS_1"]
    np.testing.assert_allclose(found.positions_angstrom, expected(), atol=1e-3)
    np.testing.assert_allclose(found.score, table[:, 9])
    matrices = euler_to_matrices(torch.from_numpy(found.angles_deg)).numpy()
    # The second: about x by 90 degrees, so the reference's z axis comes from the specimen's y axis.
    np.testing.assert_allclose(matrices[1].T @ [0, 1, 0], [0, 0, 1], atol=1e-6)
    c, s = np.cos(np.deg2rad(35)), np.sin(np.deg2rad(35))
    np.testing.assert_allclose(matrices[2].T, [[c, -s, 0], [s, c, 0], [0, 0, 1]], atol=1e-6)
    table[:, 19] = 3
    np.savetxt(folder / "third.tbl", table, fmt="%.5g")
    with pytest.raises(UserError, match="particles of tomogram 3"):
        run(folder, folder / "third.tbl")
    np.savetxt(folder / "narrow.tbl", table[:, :20], fmt="%.5g")
    with pytest.raises(UserError, match="expected at least 26"):
        run(folder, folder / "narrow.tbl")


def test_cryosparc_picks_lie_at_the_tomograms_height(folder):
    fields = [
        ("uid", "<u8"), ("location/micrograph_path", "S40"), ("location/micrograph_shape", "<u4", (2,)),
        ("location/center_x_frac", "<f4"), ("location/center_y_frac", "<f4"),
        ("alignments3D/pose", "<f4", (3,)), ("alignments3D/split", "<u4"),
    ]  # fmt: skip
    records = np.zeros(3, dtype=fields)
    records["location/micrograph_path"] = b"J1/imported/0001_TS_2_aligned.mrc"
    records["location/micrograph_shape"] = (100, 80)
    records["location/center_x_frac"] = PLACES[:, 0] / 40
    records["location/center_y_frac"] = PLACES[:, 1] / 50
    write_cs(folder / "picked.cs", records)
    found, out = run(folder, folder / "picked.cs")
    np.testing.assert_allclose(found.positions_angstrom[:, :2], expected()[:, :2], atol=0.01)
    assert (found.positions_angstrom[:, 2] == 0).all()
    assert (found.half_set == 1).all()
    assert "no height" in (out / "log.txt").read_text()


def test_several_files_are_one_table(folder):
    first = replace(make_particles(), tomogram_names=np.full(3, "TS_1"))
    write_particles(folder / "a.star", first)
    write_imod_model(folder / "TS_2.mod", make_imod_model([PLACES], SHAPE[::-1]))
    found, _ = run(folder, folder / "a.star", folder / "TS_2.mod")
    assert sorted(found.tomogram_names.tolist()) == ["TS_1"] * 3 + ["TS_2"] * 3


def test_what_cannot_be_placed_is_refused(folder):
    particles = make_particles()
    write_particles(folder / "unknown.star", replace(particles, tomogram_names=np.full(3, "TS_9")))
    with pytest.raises(UserError, match="has picks of 'TS_9'"):
        run(folder, folder / "unknown.star")
    write_particles(folder / "far.star", replace(particles, positions_angstrom=expected() + 5000))
    with pytest.raises(UserError, match=r"all 3 picks .* lie outside"):
        run(folder, folder / "far.star")
    np.savetxt(folder / "nameless.txt", PLACES)
    with pytest.raises(UserError, match="does not say which tomogram"):
        run(folder, folder / "nameless.txt")
    with pytest.raises(UserError, match="no tomogram 'TS_7'"):
        run(folder, folder / "nameless.txt", tomogram="TS_7")
    (folder / "picks.box").write_text("1 2 3\n")
    with pytest.raises(UserError, match="must be one of"):
        run(folder, folder / "picks.box")
