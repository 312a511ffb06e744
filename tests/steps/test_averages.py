"""Particles of a simulated series: half sets, averages, and alignments that make them better."""

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from verglas.benchmarks.cases import disturb_particles
from verglas.errors import UserError
from verglas.io.mrc import read_mrc, write_mrc
from verglas.io.relion_particles import read_particles, write_particles
from verglas.io.star import read_star, read_table
from verglas.ops.fft import crop_centred, pad_centred
from verglas.ops.fsc import fourier_shell_correlation
from verglas.ops.masks import soft_sphere_mask
from verglas.ops.rotation import (
    angular_distance_deg,
    euler_to_matrices,
    matrices_to_euler,
    rotation_vectors_to_matrices,
)
from verglas.steps.align import ALIGN_STEP, AlignParams
from verglas.steps.average import AVERAGE_STEP, AverageParams
from verglas.steps.fsc import FSC_STEP, FscParams
from verglas.steps.particles import PARTICLES_STEP, ParticlesParams, find_distinct
from verglas.steps.simulate import SIMULATE_STEP, SimulateParams
from verglas.steps.step import RunOptions, run_step

QUIET = RunOptions(device="cpu", quiet=True)
PIXEL = 14.0
RADIUS = 150.0


@pytest.fixture(scope="module")
def simulation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("averages") / "simulate"
    params = SimulateParams(
        image_size=(200, 200),
        pixel_size=PIXEL,
        thickness=1000.0,
        tilt_step=6.0,
        copies=40,
        vesicles=0,
        gold=0,
        seed=3,
        truth_voxel_size=PIXEL,
    )
    assert not run_step(SIMULATE_STEP, params, folder, options=QUIET).failed
    return folder


@pytest.fixture(scope="module")
def truth(simulation):
    """The particles in the field of view."""
    particles = read_particles(simulation / "truth/particles.star")
    return particles.take(np.abs(particles.positions_angstrom[:, :2]).max(axis=1) < 1100)


@pytest.fixture(scope="module")
def start(simulation, truth):
    """Poses a few degrees and ångströms from the truth, with half sets."""
    folder = simulation.parent / "start"
    write_particles(folder / "near.star", disturb_particles(truth))
    params = ParticlesParams(particles=(folder / "near.star",))
    assert not run_step(PARTICLES_STEP, params, folder / "job", options=QUIET).failed
    return folder / "job/particles.star"


def run_average(simulation, particles, folder, **changes):
    params = AverageParams(
        particles=particles,
        tilt_series=simulation / "truth/tilt_series.star",
        **({"particle_radius": RADIUS} | changes),
    )
    report = run_step(AVERAGE_STEP, params, folder, options=QUIET)
    assert not report.failed, report.failed
    return report


def run_align(simulation, particles, folder, **changes):
    params = AlignParams(
        particles=particles,
        tilt_series=simulation / "truth/tilt_series.star",
        **({"particle_radius": RADIUS, "turn_step": 6.0} | changes),
    )
    report = run_step(ALIGN_STEP, params, folder, options=QUIET)
    assert not report.failed, report.failed
    return report


@pytest.fixture(scope="module")
def cycle(simulation, start):
    """An average, an alignment to it, and the average of that."""
    folder = simulation.parent
    run_average(simulation, start, folder / "average0")
    run_align(simulation, start, folder / "align1", average=folder / "average0")
    run_average(simulation, folder / "align1/particles.star", folder / "average1")
    return folder


def reference_map(simulation, size):
    path = next((simulation / "truth/references").glob("*.mrc"))
    volume = torch.from_numpy(read_mrc(path))
    fit = crop_centred if volume.shape[-1] >= size else pad_centred
    return fit(volume, (size,) * 3)


def correlation_with_truth(simulation, job):
    volume = torch.from_numpy(read_mrc(job / "maps/average.mrc"))
    size = volume.shape[-1]
    mask = soft_sphere_mask((size,) * 3, RADIUS / PIXEL, 4)
    return fourier_shell_correlation(volume, reference_map(simulation, size), PIXEL, mask)


def test_the_average_of_true_poses_is_the_molecule(simulation, truth, tmp_path):
    halves = replace(truth, half_set=1 + np.arange(len(truth)) % 2)
    write_particles(tmp_path / "true.star", halves)
    report = run_average(simulation, tmp_path / "true.star", tmp_path / "out")
    frequency, curve = correlation_with_truth(simulation, tmp_path / "out")
    assert float(curve[(frequency > 1 / 200) & (frequency < 1 / 45)].min()) > 0.8
    assert report.summary.values["particles"].value == len(truth)
    assert report.summary.values["resolution"].value < 40


def test_alignment_makes_the_average_and_the_poses_better(simulation, truth, start, cycle):
    frequency, before = correlation_with_truth(simulation, cycle / "average0")
    _, after = correlation_with_truth(simulation, cycle / "average1")
    band = (frequency > 1 / 60) & (frequency < 1 / 35)
    assert float(after[band].mean()) > float(before[band].mean()) + 0.05
    true, first, then = (
        euler_to_matrices(torch.from_numpy(table.angles_deg))
        for table in (truth, read_particles(start), read_particles(cycle / "align1/particles.star"))
    )
    assert float(angular_distance_deg(then, true).median()) < 0.6 * float(
        angular_distance_deg(first, true).median()
    )


def test_what_is_written_is_whole(cycle, relion):
    job = cycle / "average1"
    table = read_table(job / "fsc.star", "fsc")
    assert {"rlnResolution", "rlnFourierShellCorrelationCorrected", "vglCone37"} <= set(table.columns)
    assert float(table["rlnFourierShellCorrelationUnmaskedMaps"].iloc[1]) > 0.3
    for name in ("half1", "half2", "half1_filtered", "half2_filtered", "average", "mask"):
        assert read_mrc(job / f"maps/{name}.mrc").shape == (44, 44, 44)
    summary = json.loads((job / "summary.json").read_text())
    assert [figure["path"] for figure in summary["figures"]][:3] == [
        f"figures/{kind}.png" for kind in ("average", "fsc", "directions")
    ]
    printed = relion(
        "relion_star_printtable", str(cycle / "align1/particles.star"), "data_particles", "rlnAngleRot"
    )
    assert len(printed.split()) == len(read_particles(cycle / "align1/particles.star"))


def test_relion_finds_the_same_correlation(cycle, relion, tmp_path):
    """Unmasked and masked curves of relion_postprocess, shell by shell, of the maps that the table names."""
    job = cycle / "average1"
    general = read_star(job / "fsc.star")["general"]
    (tmp_path / "post").mkdir()  # where RELION puts the log that it makes of `--o`
    first, second, mask = (
        str(job / general[label])
        for label in ("rlnUnfilteredMapHalf1", "rlnUnfilteredMapHalf2", "rlnMaskName")
    )
    relion(
        "relion_postprocess", "--i", first, "--i2", second, "--mask", mask,
        "--angpix", PIXEL, "--o", "post", "--skip_fsc_weighting",
    )  # fmt: skip
    ours = read_table(job / "fsc.star", "fsc")
    theirs = read_table(tmp_path / "post.star", "fsc")
    for label in ("rlnFourierShellCorrelationUnmaskedMaps", "rlnFourierShellCorrelationMaskedMaps"):
        count = min(len(ours), len(theirs))
        np.testing.assert_allclose(ours[label][1:count], theirs[label][1:count], atol=0.01)


def test_fsc_alone_gives_the_curve_of_the_average(cycle, tmp_path):
    maps = cycle / "average1/maps"
    second = cycle / "average1" / read_star(cycle / "average1/fsc.star")["general"]["rlnUnfilteredMapHalf2"]
    params = FscParams(half1=maps / "half1.mrc", half2=second, mask=maps / "mask.mrc", local_resolution=True)
    report = run_step(FSC_STEP, params, tmp_path / "out", options=QUIET)
    one, other = (read_table(job / "fsc.star", "fsc") for job in (tmp_path / "out", cycle / "average1"))
    label = "rlnFourierShellCorrelationCorrected"
    np.testing.assert_allclose(one[label], other[label], atol=1e-4)
    assert report.summary.values["resolution"].value == pytest.approx(
        json.loads((cycle / "average1/summary.json").read_text())["values"]["resolution"]["value"], abs=0.02
    )
    local = read_mrc(tmp_path / "out/maps/local_resolution.mrc")
    middle = np.median(local[18:26, 18:26, 18:26])
    assert middle == pytest.approx(report.summary.values["resolution"].value, rel=0.25)
    assert np.median(local[:6]) > middle
    points = ElementTree.parse(tmp_path / "out/fsc.xml").getroot()
    assert points.attrib["xaxis"] == "Resolution (A-1)"
    values = [float(point.findtext("y")) for point in points]
    np.testing.assert_allclose(values, one[label], atol=1e-5)
    assert (tmp_path / "out/figures/fsc.pdf").read_bytes().startswith(b"%PDF")
    write_mrc(tmp_path / "small.mrc", np.ones((20, 20, 20), np.float32), voxel_size_angstrom=PIXEL)
    for changes, words in (
        ({"half2": tmp_path / "small.mrc"}, "expected cubes of one size"),
        ({"mask": tmp_path / "small.mrc"}, r"expected \(44, 44, 44\)"),
        ({"half2": tmp_path / "none.mrc"}, "does not exist"),
    ):
        bad = FscParams(**({"half1": maps / "half1.mrc", "half2": maps / "half2.mrc"} | changes))
        try:
            failed = run_step(FSC_STEP, bad, tmp_path / f"bad{len(words)}", options=QUIET).failed
            told = failed["fsc"]
        except UserError as error:
            told = str(error)
        assert re.search(words, told)


def test_the_final_map_joins_halves_that_drifted_apart(simulation, truth, tmp_path):
    """The second half set is turned by 5° and shifted by 12 Å as a whole."""
    halves = replace(truth, half_set=1 + np.arange(len(truth)) % 2)
    drift = rotation_vectors_to_matrices(torch.tensor([[3.0, -4.0, 0.0]], dtype=torch.float64))[0]
    rotations = euler_to_matrices(torch.from_numpy(halves.angles_deg))
    shift = torch.tensor([10.0, 0.0, -7.0], dtype=torch.float64)
    second = torch.from_numpy(halves.half_set == 2)
    turned = torch.where(second[:, None, None], rotations @ drift, rotations)
    moves = torch.where(second[:, None], (rotations @ shift[:, None])[..., 0], 0.0)
    drifted = replace(
        halves,
        angles_deg=matrices_to_euler(turned).numpy(),
        positions_angstrom=halves.positions_angstrom + moves.numpy(),
    )
    write_particles(tmp_path / "drifted.star", drifted)
    run_average(simulation, tmp_path / "drifted.star", tmp_path / "out", mask="molecule")
    report = run_average(
        simulation,
        tmp_path / "drifted.star",
        tmp_path / "final",
        final=tmp_path / "out",
        bfactor=(0.0, 3000.0),
    )
    frequency, blurred = correlation_with_truth(simulation, tmp_path / "out")
    _, sharp = correlation_with_truth(simulation, tmp_path / "final")
    band = (frequency > 1 / 60) & (frequency < 1 / 35)
    assert float(sharp[band].mean()) > float(blurred[band].mean()) + 0.05
    assert report.summary.values["registration"].value > 12
    plain, sharpened = (read_mrc(tmp_path / f"final/maps/average_b{b}.mrc") for b in (0, 3000))
    np.testing.assert_allclose(plain, read_mrc(tmp_path / "final/maps/average.mrc"), atol=1e-5 * plain.max())
    assert np.abs(np.fft.rfftn(sharpened)[8]).mean() > 1.5 * np.abs(np.fft.rfftn(plain)[8]).mean()
    assert {figure.path for figure in report.summary.figures} >= {
        f"figures/{kind}.png" for kind in ("sections", "sampling", "counts", "local_resolution")
    }
    with pytest.raises(UserError, match="whose mask is taken"):
        run_average(
            simulation, tmp_path / "drifted.star", tmp_path / "no", final=tmp_path / "out", mask="molecule"
        )
    with pytest.raises(UserError, match="does not exist"):
        run_average(simulation, tmp_path / "drifted.star", tmp_path / "no", final=tmp_path / "none")


def test_a_second_run_gives_the_same_bytes(simulation, start, cycle, tmp_path):
    run_align(simulation, start, tmp_path / "align", average=cycle / "average0")
    assert (tmp_path / "align/particles.star").read_bytes() == (cycle / "align1/particles.star").read_bytes()
    run_average(simulation, start, tmp_path / "average")
    for name in ("maps/average.mrc", "fsc.star", "figures/average.png", "figures/fsc.pdf"):
        assert (tmp_path / "average" / name).read_bytes() == (cycle / "average0" / name).read_bytes()


def test_a_first_reference_serves_both_halves(simulation, start, tmp_path):
    write_mrc(tmp_path / "first.mrc", reference_map(simulation, 44).numpy(), voxel_size_angstrom=PIXEL)
    report = run_align(simulation, start, tmp_path / "out", reference=tmp_path / "first.mrc", lowpass=50.0)
    assert report.summary.values["compared to"].value == 50.0
    assert report.summary.values["score"].value > 0.05


def test_classes_are_told_apart_and_taken(simulation, start, tmp_path):
    """A molecule, and what mirrors it; no more than a few particles take the wrong one."""
    volume = reference_map(simulation, 44)
    for name, one in (("wrong", torch.roll(volume.flip(0), 1, 0)), ("right", volume)):
        write_mrc(tmp_path / f"{name}.mrc", one.numpy(), voxel_size_angstrom=PIXEL)
    maps = (tmp_path / "wrong.mrc", tmp_path / "right.mrc")
    report = run_align(simulation, start, tmp_path / "out", reference=maps, lowpass=40.0)
    few, most = map(int, report.summary.values["classes"].value.split(", "))
    assert few + most == len(read_particles(start))
    assert most > 3 * few
    params = ParticlesParams(particles=(tmp_path / "out/particles.star",), class_number=2)
    run_step(PARTICLES_STEP, params, tmp_path / "class2", options=QUIET)
    assert len(read_particles(tmp_path / "class2/particles.star")) == most
    with pytest.raises(UserError, match="no particle is of class 7"):
        run_step(PARTICLES_STEP, params.model_copy(update={"class_number": 7}), tmp_path / "x", options=QUIET)
    with pytest.raises(UserError, match="the particles have no rlnClassNumber"):
        run_step(
            PARTICLES_STEP, params.model_copy(update={"particles": (start,)}), tmp_path / "y", options=QUIET
        )


def test_random_orientations_are_spread_and_repeatable(start, tmp_path):
    found = []
    for name in "ab":
        params = ParticlesParams(particles=(start,), orientations="random", seed=4)
        run_step(PARTICLES_STEP, params, tmp_path / name, options=QUIET)
        found.append(read_particles(tmp_path / name / "particles.star"))
    np.testing.assert_array_equal(found[0].angles_deg, found[1].angles_deg)
    turned = angular_distance_deg(
        *(euler_to_matrices(torch.from_numpy(one.angles_deg)) for one in (found[0], read_particles(start)))
    )
    assert float(turned.median()) > 90
    assert np.isnan(found[0].score).all()


def test_references_are_read_again_when_their_file_changes(simulation, start, tmp_path):
    path = tmp_path / "first.mrc"
    scores = []
    for sign in (1, -1):
        write_mrc(path, sign * reference_map(simulation, 44).numpy(), voxel_size_angstrom=PIXEL)
        options = {"reference": path, "turn": 0.0, "shift": 0.0, "refine": False}
        report = run_align(simulation, start, tmp_path / f"out{sign}", turn_step=None, **options)
        scores.append(report.summary.values["score"].value)
    assert scores[0] == pytest.approx(-scores[1], rel=1e-3)


def test_maps_of_two_sizes_are_refused(simulation, start, tmp_path):
    for size in (44, 48):
        volume = reference_map(simulation, size).numpy()
        write_mrc(tmp_path / f"{size}.mrc", volume, voxel_size_angstrom=PIXEL)
    params = AlignParams(
        particles=start,
        tilt_series=simulation / "truth/tilt_series.star",
        reference=(tmp_path / "44.mrc", tmp_path / "48.mrc"),
        particle_radius=RADIUS,
    )
    failed = run_step(ALIGN_STEP, params, tmp_path / "out", options=QUIET).failed
    assert "expected (44, 44, 44) of 14 Å like the first map" in next(iter(failed.values()))


def test_two_kinds_of_grids_at_once_are_refused(start):
    with pytest.raises(ValueError, match="expected `angle_search` or `turn`"):
        AlignParams(
            particles=start,
            tilt_series=start,
            reference=start,
            particle_radius=RADIUS,
            turn=10.0,
            angle_search=(10.0, 5.0, 10.0, 5.0),
        )


def test_rescoring_is_done_against_the_other_half_and_moves_nothing(simulation, start, cycle, tmp_path):
    table = read_particles(start)
    run_align(simulation, start, tmp_path / "rescored", average=cycle / "average0", rescore=True)
    rescored = read_particles(tmp_path / "rescored/particles.star")
    assert np.allclose(rescored.positions_angstrom, table.positions_angstrom, atol=1e-3)
    assert np.allclose(rescored.angles_deg, table.angles_deg, atol=1e-3)
    # The same scores come about when the half sets trade their names and nothing is shared.
    write_particles(tmp_path / "traded.star", replace(table, half_set=3 - table.half_set))
    run_align(
        simulation, tmp_path / "traded.star", tmp_path / "align", average=cycle / "average0", shared=1e6
    )
    traded = read_particles(tmp_path / "align/particles.star")
    assert np.allclose(rescored.score, traded.score, atol=1e-4)
    # A particle is part of its own half's map, noise and all.
    own = read_particles(cycle / "align1/particles.star")
    assert own.score.mean() > rescored.score.mean() + 0.005
    with pytest.raises(ValueError, match="`rescore` goes with `average`"):
        run_align(simulation, start, tmp_path / "bad", reference=tmp_path / "none.mrc", rescore=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"box": 20}, "expected at least 375 Å"),
        ({"particle_radius": 1e5}, "is 7142.86 pixels of 14 Å; expected from 1.5 to 256"),
        ({"symmetry": "C0"}, "C0"),
    ],
)
def test_bad_averages_are_one_sentence(simulation, start, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        run_average(simulation, start, tmp_path / "out", **changes)


def test_masks_that_do_not_fit_are_refused(simulation, start, tmp_path):
    write_mrc(tmp_path / "mask.mrc", np.ones((20, 20, 20), np.float32), voxel_size_angstrom=PIXEL)
    with pytest.raises(UserError, match=r"shape \(20, 20, 20\).*expected \(44, 44, 44\)"):
        run_average(simulation, start, tmp_path / "out", mask=tmp_path / "mask.mrc")


def test_particles_without_half_sets_are_refused(simulation, tmp_path):
    with pytest.raises(UserError, match=r"are \[0\]; expected both 1 and 2"):
        run_average(simulation, simulation / "truth/particles.star", tmp_path / "out")


def test_particles_of_an_unknown_series_are_refused(simulation, start, tmp_path):
    table = read_particles(start)
    write_particles(tmp_path / "p.star", replace(table, tomogram_names=np.full(len(table), "other")))
    with pytest.raises(UserError, match="particles of 'other' have no tilt series"):
        run_average(simulation, tmp_path / "p.star", tmp_path / "out")


def test_one_of_average_and_reference_is_needed(simulation, start, tmp_path):
    with pytest.raises(ValueError, match="expected one of `average` and `reference`"):
        run_align(simulation, start, tmp_path / "out")
    with pytest.raises(UserError, match="does not exist"):
        run_align(simulation, start, tmp_path / "out", average=tmp_path / "none")


def test_half_sets_are_equal_and_stay(start, tmp_path):
    table = read_particles(start)
    assert abs(int((table.half_set == 1).sum()) - int((table.half_set == 2).sum())) <= 1
    run_step(PARTICLES_STEP, ParticlesParams(particles=(start,), seed=7), tmp_path / "kept", options=QUIET)
    kept = read_particles(tmp_path / "kept/particles.star")
    np.testing.assert_array_equal(kept.half_set, table.half_set)
    again = ParticlesParams(particles=(start,), seed=7, halves="random")
    run_step(PARTICLES_STEP, again, tmp_path / "again", options=QUIET)
    assert (read_particles(tmp_path / "again/particles.star").half_set != table.half_set).any()


def test_duplicates_poor_scores_and_the_best(start, tmp_path):
    table = read_particles(start)
    table = replace(table, score=np.arange(len(table), dtype=float))
    twice = replace(table, positions_angstrom=table.positions_angstrom + 5.0, score=table.score + 0.5)
    for name, one in (("a", table), ("b", twice)):
        write_particles(tmp_path / f"{name}.star", one)
    params = ParticlesParams(
        particles=(tmp_path / "a.star", tmp_path / "b.star"), distance=20.0, least_score=2.0, best=5
    )
    run_step(PARTICLES_STEP, params, tmp_path / "out", options=QUIET)
    kept = read_particles(tmp_path / "out/particles.star")
    np.testing.assert_allclose(sorted(kept.score), np.arange(len(table) - 5, len(table)) + 0.5)
    double = ParticlesParams(particles=(tmp_path / "a.star", tmp_path / "a.star"))
    told = run_step(PARTICLES_STEP, double, tmp_path / "double", options=QUIET).summary.warnings
    assert told[0].startswith(f"{len(table)} of {2 * len(table)} particles lie within 1 Å of another")


def test_of_near_ones_the_best_stays(start):
    table = read_particles(start).take([0, 0, 0])
    table = replace(
        table,
        positions_angstrom=np.array([[0, 0, 0], [8.0, 0, 0], [16.0, 0, 0]]),
        score=np.array([1.0, 3.0, 2.0]),
    )
    assert find_distinct(table, 10.0, np.ones(3, bool)).tolist() == [False, True, False]
    assert find_distinct(table, 5.0, np.ones(3, bool)).tolist() == [True, True, True]


def test_whole_tomograms_are_halves(start, tmp_path):
    table = read_particles(start)
    names = np.where(np.arange(len(table)) % 3 == 0, "A", "B")
    write_particles(tmp_path / "p.star", replace(table, tomogram_names=names))
    params = ParticlesParams(particles=(tmp_path / "p.star",), halves="tomogram")
    run_step(PARTICLES_STEP, params, tmp_path / "out", options=QUIET)
    found = read_particles(tmp_path / "out/particles.star")
    assert {(name, half) for name, half in zip(found.tomogram_names, found.half_set, strict=True)} == {
        ("A", 2),
        ("B", 1),
    }
    with pytest.raises(UserError, match="lie in 1 tomogram"):
        run_step(
            PARTICLES_STEP,
            ParticlesParams(particles=(start,), halves="tomogram"),
            tmp_path / "one",
            options=QUIET,
        )
