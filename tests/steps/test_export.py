"""Particles for other programs: what RELION makes of them, and tables there and back."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from verglas.errors import UserError
from verglas.io.dynamo import particles_from_dynamo, read_dynamo_table
from verglas.io.emclarity import read_regions, region_geometry
from verglas.io.emclarity_motives import particles_from_emclarity, read_motives
from verglas.io.mrc import read_mrc
from verglas.io.relion_particles import read_particles, write_particles
from verglas.io.relion_tilt_series import read_tilt_series
from verglas.io.relion_tomograms import read_tomograms
from verglas.io.star import read_star, read_table, write_star
from verglas.ops.fft import crop_centred, pad_centred
from verglas.ops.fsc import fourier_shell_correlation
from verglas.ops.masks import soft_sphere_mask
from verglas.ops.rotation import angular_distance_deg, euler_to_matrices
from verglas.steps.export import EXPORT_STEP, ExportParams
from verglas.steps.step import RunOptions, run_step

QUIET = RunOptions(device="cpu", quiet=True)
BOX = 32


def run_export(ribosomes, folder, form, **changes):
    images = form in ("relion5", "relion5-3d", "relion3", "cistem")
    tomograms = form in ("dynamo", "emclarity")
    params = ExportParams(
        **{
            "particles": ribosomes.particles,
            "tilt_series": ribosomes.tomograms if tomograms else ribosomes.series,
            "format": form,
            **({"box": BOX} if images else {}),
            **changes,
        }
    )
    report = run_step(EXPORT_STEP, params, folder, options=QUIET)
    assert not report.failed, report.failed
    return report


def check_poses(found, expected, angstrom=0.01, degrees=0.01):
    np.testing.assert_allclose(found.positions_angstrom, expected.positions_angstrom, atol=angstrom)
    first, second = (euler_to_matrices(torch.from_numpy(one.angles_deg)) for one in (found, expected))
    assert float(angular_distance_deg(first, second).max()) < degrees
    assert found.tomogram_names.tolist() == expected.tomogram_names.tolist()


def correlate(path, ribosomes, sign=1):
    """Correlation with the molecule up to 45 Å, in a sphere."""
    truth = torch.from_numpy(read_mrc(ribosomes.reference))
    fit = crop_centred if truth.shape[-1] >= BOX else pad_centred
    mask = soft_sphere_mask((BOX,) * 3, 150 / 14, 3)
    volume = sign * torch.from_numpy(read_mrc(path))
    frequency, curve = fourier_shell_correlation(volume, fit(truth, (BOX,) * 3), ribosomes.pixel, mask)
    return float(curve[(frequency > 1 / 200) & (frequency < 1 / 45)].min())


def test_relion_makes_the_molecule_of_boxes_with_their_ctf_volumes(ribosomes, relion, tmp_path):
    run_export(ribosomes, tmp_path / "out", "relion3")
    relion("relion_reconstruct", "--i", tmp_path / "out/particles.star", "--o", "map.mrc", "--ctf")
    assert correlate(tmp_path / "map.mrc", ribosomes) > 0.85
    frames = read_tilt_series(ribosomes.series)
    check_poses(read_particles(tmp_path / "out/particles.star", frames, ribosomes.pixel), ribosomes.truth)


def test_relion_refines_boxes_towards_the_truth(ribosomes, relion, tmp_path):
    run_export(ribosomes, tmp_path / "true", "relion3")
    relion("relion_reconstruct", "--i", tmp_path / "true/particles.star", "--o", "map.mrc", "--ctf")
    few = replace(read_particles(ribosomes.near)).take(np.arange(8))
    write_particles(tmp_path / "few.star", few)
    run_export(ribosomes, tmp_path / "near", "relion3", particles=tmp_path / "few.star")
    (tmp_path / "refine").mkdir()
    relion(
        "relion_refine", "--i", tmp_path / "near/particles.star", "--o", "refine/run", "--ref", "map.mrc",
        "--ini_high", 60, "--ctf", "--ctf_corrected_ref", "--iter", 3, "--particle_diameter", 300,
        "--flatten_solvent", "--zero_mask", "--oversampling", 1, "--healpix_order", 3, "--sigma_ang", 6,
        "--offset_range", 2, "--offset_step", 1, "--norm", "--scale", "--pad", 2, "--random_seed", 1,
        # Without these the prior of the offsets, as 3.1 computes it, is zero for steps of pixels this large.
        "--fix_sigma_offset", "--offset", 100,
    )  # fmt: skip
    found = read_particles(
        tmp_path / "refine/run_it003_data.star", read_tilt_series(ribosomes.series), ribosomes.pixel
    )
    true, before, after = (
        euler_to_matrices(torch.from_numpy(one.angles_deg))
        for one in (ribosomes.truth.take(np.arange(8)), few, found)
    )
    moved = float(angular_distance_deg(after, true).median())
    assert moved < 0.7 * float(angular_distance_deg(before, true).median())


def test_cistem_rows_and_stack_give_the_molecule(ribosomes, relion, tmp_path):
    """Said in RELION's labels, as cisTEM's angles are RELION's; what is written is dark where dense."""
    run_export(ribosomes, tmp_path / "out", "cistem")
    table = read_table(tmp_path / "out/stacks/TS_01.star").rename(
        columns=lambda label: label.removeprefix("cisTEM")
    )
    (tmp_path / "stack.mrcs").symlink_to(tmp_path / "out/stacks/TS_01.mrc")
    particles = {
        "rlnImageName": [f"{row:06d}@stack.mrcs" for row in table["PositionInStack"]],
        "rlnAngleRot": table["AnglePhi"],
        "rlnAngleTilt": table["AngleTheta"],
        "rlnAnglePsi": table["AnglePsi"],
        "rlnDefocusU": table["Defocus1"],
        "rlnDefocusV": table["Defocus2"],
        "rlnDefocusAngle": table["DefocusAngle"],
        "rlnOpticsGroup": 1,
    }
    optics = {
        "rlnOpticsGroup": [1],
        "rlnOpticsGroupName": ["a"],
        "rlnVoltage": [float(table["MicroscopeVoltagekV"][0])],
        "rlnSphericalAberration": [float(table["MicroscopeCsMM"][0])],
        "rlnAmplitudeContrast": [float(table["AmplitudeContrast"][0])],
        "rlnImagePixelSize": [ribosomes.pixel],
        "rlnImageSize": [BOX],
        "rlnImageDimensionality": [2],
    }
    write_star(tmp_path / "p.star", {"optics": pd.DataFrame(optics), "particles": pd.DataFrame(particles)})
    relion("relion_reconstruct", "--i", "p.star", "--o", "map.mrc", "--ctf")
    assert correlate(tmp_path / "map.mrc", ribosomes, sign=-1) > 0.85
    groups = table["ParticleGroup"].to_numpy(dtype=int)
    assert sorted(set(groups)) == list(range(1, len(ribosomes.truth) + 1))
    assert (table["AssignedSubset"].to_numpy() == ribosomes.truth.half_set[groups - 1]).all()


def test_relion5_stacks_and_boxes_hold_the_same_particles(ribosomes, tmp_path):
    run_export(ribosomes, tmp_path / "two", "relion5")
    run_export(ribosomes, tmp_path / "three", "relion5-3d")
    run_export(ribosomes, tmp_path / "white", "relion3")
    for job, stacks in (("two", 1), ("three", 0)):
        blocks = read_star(tmp_path / job / "particles.star")
        assert blocks["general"]["rlnTomoSubTomosAre2DStacks"] == stacks
        optics = blocks["optics"].iloc[0]
        assert (optics["rlnCtfDataAreCtfPremultiplied"], optics["rlnImageSize"]) == (1, BOX)
        assert optics["rlnImageDimensionality"] == 3 - stacks
        check_poses(read_particles(tmp_path / job / "particles.star"), ribosomes.truth, 1e-6, 1e-5)
        pair = read_star(tmp_path / job / "optimisation_set.star")[""]
        assert pair["rlnTomoParticlesFile"] == str(tmp_path / job / "particles.star")
    rows = read_table(tmp_path / "two/particles.star", "particles")
    for path, frames in zip(rows["rlnImageName"][:3], rows["rlnTomoVisibleFrames"], strict=False):
        assert read_mrc(path).shape == (frames.count("1"), BOX, BOX)
    # Data over the root of their weights are the whitened box, which RELION made the molecule of.
    data, both, white = (
        torch.from_numpy(read_mrc(tmp_path / name))
        for name in (
            "three/subtomograms/TS_01/1_data.mrc",
            "three/subtomograms/TS_01/1_weights.mrc",
            "white/subtomograms/TS_01/1_data.mrc",
        )
    )
    assert both.shape == (2 * BOX, BOX, BOX // 2 + 1)
    weights, counts = both[:BOX], both[BOX:]
    known = weights > 0.01 * weights.max()
    first, second = (torch.fft.rfftn(torch.fft.ifftshift(one)) for one in (data, white))
    torch.testing.assert_close(first[known] / weights[known].sqrt(), second[known], rtol=1e-2, atol=0.2)
    assert float(counts[known].min()) > 0


def test_tables_come_back(ribosomes, tmp_path):
    tomograms = read_tomograms(ribosomes.tomograms)
    series = read_tilt_series(ribosomes.series)
    run_export(ribosomes, tmp_path / "warp", "warp")
    warp = read_particles(tmp_path / "warp/particles.star", series)
    check_poses(warp, ribosomes.truth)
    np.testing.assert_array_equal(warp.half_set, ribosomes.truth.half_set)
    run_export(ribosomes, tmp_path / "dynamo", "dynamo")
    table = read_dynamo_table(tmp_path / "dynamo/particles.tbl")
    check_poses(particles_from_dynamo(table, tomograms), ribosomes.truth)
    np.testing.assert_array_equal(table[:, 33], ribosomes.truth.half_set)
    assert (np.abs(table[:, 3:6]) <= 0.5).all()
    run_export(ribosomes, tmp_path / "emc", "emclarity")
    prefix, regions = read_regions(tmp_path / "emc/recon/TS_01_recon.coords")
    geometry = region_geometry(regions[0], series["TS_01"].image_shape[0])
    motives = read_motives(tmp_path / "emc/convmap/TS_01_1_bin1.csv")
    back = particles_from_emclarity(
        motives, geometry, pixel_size_angstrom=ribosomes.pixel, tomogram_name=prefix
    )
    check_poses(back, ribosomes.truth)
    np.testing.assert_array_equal(back.half_set, ribosomes.truth.half_set)
    np.testing.assert_allclose(back.score, ribosomes.truth.score)


def test_dynamo_counts_voxels_of_its_tomogram_from_one(ribosomes, tmp_path):
    one = read_tomograms(ribosomes.tomograms)[0]
    middle = replace(
        ribosomes.truth.take([0, 1]), positions_angstrom=np.zeros((2, 3)), angles_deg=np.zeros((2, 3))
    )
    write_particles(tmp_path / "p.star", middle)
    run_export(ribosomes, tmp_path / "out", "dynamo", particles=tmp_path / "p.star")
    table = read_dynamo_table(tmp_path / "out/particles.tbl")
    np.testing.assert_array_equal(table[0, 23:26], [n // 2 + 1 for n in reversed(one.shape)])
    # No turn at all is tdrot and narot that cancel each other.
    assert table[0, 6] + table[0, 8] == pytest.approx(0, abs=1e-6)
    assert (tmp_path / "out/tomograms.doc").read_text() == f"1 {one.path}\n"


def test_particles_that_nothing_shows_are_left_out(ribosomes, tmp_path):
    far = ribosomes.truth.positions_angstrom.copy()
    far[3] = 9000.0
    write_particles(tmp_path / "p.star", replace(ribosomes.truth, positions_angstrom=far))
    for form, words in (("relion5", "lie in no view"), ("dynamo", "lie in no tomogram")):
        report = run_export(ribosomes, tmp_path / form, form, particles=tmp_path / "p.star")
        told = " ".join(report.summary.warnings)
        assert f"1 of {len(far)} particles {words}" in told
    assert len(read_particles(tmp_path / "relion5/particles.star")) == len(far) - 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "relion3"}, "expected a `box`"),
        ({"format": "warp", "box": 32}, "writes no images; expected no `box`"),
        ({"format": "stopgap"}, "Input should be 'relion5'"),
        ({"format": "relion5", "box": 31}, "multiple of 2"),
    ],
)
def test_wrong_wishes_are_refused(ribosomes, changes, words):
    with pytest.raises(ValueError, match=words):
        ExportParams(particles=ribosomes.particles, tilt_series=ribosomes.series, **changes)


def test_dynamo_needs_tomograms(ribosomes, tmp_path):
    with pytest.raises(UserError, match="rlnTomoReconstructedTomogram"):
        run_export(ribosomes, tmp_path / "out", "dynamo", tilt_series=ribosomes.series)
