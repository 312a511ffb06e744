"""The match step on a simulated tomogram: what it finds, what it writes, how it resumes, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from verglas.algo.matching.search import block_bytes
from verglas.errors import UserError
from verglas.io.emclarity_motives import particles_from_emclarity, read_motives
from verglas.io.imod_model import list_points, read_imod_model
from verglas.io.mrc import read_mrc, write_mrc
from verglas.io.relion_particles import read_particles
from verglas.io.relion_tilt_series import read_tilt_series
from verglas.io.relion_tomograms import read_tomograms, write_tomograms
from verglas.ops.rotation import angular_distance_deg, euler_to_matrices
from verglas.steps import match_search
from verglas.steps.match import MATCH_STEP, MatchParams
from verglas.steps.match_outputs import place_in_tomogram
from verglas.steps.picks import emclarity_geometry
from verglas.steps.reconstruct import RECONSTRUCT_STEP, ReconstructParams
from verglas.steps.simulate import SIMULATE_STEP, SimulateParams
from verglas.steps.step import RunOptions, run_step

QUIET = RunOptions(quiet=True, device="cpu")
SEARCH = {"lowpass": 80.0, "angle_step": 25.0, "particle_radius": (100.0, 100.0, 100.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A simulated series of twelve ribosomes and its tomogram, and a search in it."""
    folder = tmp_path_factory.mktemp("match")
    simulate = SimulateParams(
        image_size=(112, 104), pixel_size=20.0, thickness=700.0, tilt_step=6.0, copies=12, vesicles=0, gold=3
    )
    assert not run_step(SIMULATE_STEP, simulate, folder / "simulate", options=QUIET).failed
    reconstruct = ReconstructParams(
        tilt_series=folder / "simulate/truth/tilt_series.star", pixel_size=40.0, thickness=900.0
    )
    assert not run_step(RECONSTRUCT_STEP, reconstruct, folder / "tomo", options=QUIET).failed
    assert not match(folder, folder / "match").failed
    return folder


def match(folder, out, tomograms=None, **changes):
    tomograms = tomograms or folder / "tomo/tomograms.star"
    (reference,) = (folder / "simulate/truth/references").glob("*.mrc")
    params = MatchParams(**{"tomograms": tomograms, "template": (reference,), **SEARCH, **changes})
    return run_step(MATCH_STEP, params, out, options=QUIET)


def compare(particles, truth):
    """Distance in Å and angle in degrees to the nearest true molecule."""
    offsets = particles.positions_angstrom[:, None] - truth.positions_angstrom[None]
    distance = np.linalg.norm(offsets, axis=2)
    nearest = distance.argmin(axis=1)
    found, true = (
        euler_to_matrices(torch.from_numpy(angles))
        for angles in (particles.angles_deg, truth.angles_deg[nearest])
    )
    angles = [float(angular_distance_deg(a, b[None])[0]) for a, b in zip(found, true, strict=True)]
    return distance.min(axis=1), np.array(angles), nearest


def test_molecules_are_found_as_they_lie(folder):
    truth = read_particles(folder / "simulate/truth/particles.star")
    particles = read_particles(folder / "match/particles.star")
    inside = np.abs(truth.positions_angstrom[:, :2]).max(axis=1) < 900
    distance, angle, nearest = compare(particles, truth)
    # All that lie a radius off the edges, and nothing else; gold, which is there too, would be.
    assert set(nearest) == set(np.flatnonzero(inside))
    assert distance.max() < 10
    assert np.median(angle) < 5
    assert angle.max() < 10
    assert (np.diff(particles.score) <= 1e-6).all()
    assert abs((particles.half_set == 1).sum() - (particles.half_set == 2).sum()) <= 1


def test_all_formats_say_the_same(folder):
    particles = read_particles(folder / "match/particles.star")
    (tomogram,) = read_tomograms(folder / "tomo/tomograms.star")
    pixel = read_tilt_series(folder / "tomo/tomograms.star")[tomogram.name].pixel_size_angstrom
    again = particles_from_emclarity(
        read_motives(folder / f"match/emclarity/{tomogram.name}.csv"),
        emclarity_geometry(tomogram, pixel),
        pixel_size_angstrom=pixel,
        tomogram_name=tomogram.name,
    )
    np.testing.assert_allclose(again.positions_angstrom, particles.positions_angstrom, atol=0.01)
    turned = [euler_to_matrices(torch.from_numpy(one.angles_deg)) for one in (again, particles)]
    torch.testing.assert_close(*turned, atol=1e-4, rtol=0)
    points, _ = list_points(read_imod_model(folder / f"match/models/{tomogram.name}.mod"))
    places = place_in_tomogram(particles, tomogram) + np.array([0.5, 0.5, 0.0])
    np.testing.assert_allclose(points, places, atol=1e-3)


def test_maps_hold_the_scores_and_orientations_of_the_picks(folder):
    particles = read_particles(folder / "match/particles.star")
    (tomogram,) = read_tomograms(folder / "tomo/tomograms.star")
    scores, rows = (
        read_mrc(folder / f"match/scores/{tomogram.name}{kind}.mrc") for kind in ("", "_orientations")
    )
    angles = np.loadtxt(folder / "match/orientations.txt")
    assert scores.shape == tomogram.shape
    for place, score, fine in zip(
        np.rint(place_in_tomogram(particles, tomogram)).astype(int),
        particles.score,
        particles.angles_deg,
        strict=True,
    ):
        around = tuple(slice(p - 1, p + 2) for p in place[::-1])
        assert scores[around].max() == pytest.approx(score, abs=1e-5)
        row = int(rows[around].ravel()[scores[around].argmax()])
        matrices = euler_to_matrices(torch.from_numpy(np.stack([angles[row - 1], fine])))
        assert float(angular_distance_deg(matrices[0], matrices[1:])[0]) < SEARCH["angle_step"]


def test_a_search_that_was_killed_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    work = match_search.search_block
    done = []

    def die_after_two(*arguments, **options):
        if len(done) == 2:
            raise KeyError("killed")
        done.append(1)
        return work(*arguments, **options)

    plan = match_search.plan_blocks

    def plan_small(shape, bank, memory, *arguments, **options):
        whole = block_bytes(shape, bank, *arguments, **options)
        return plan(shape, bank, int(0.4 * whole), *arguments, **options)

    monkeypatch.setattr(match_search, "plan_blocks", plan_small)
    monkeypatch.setattr(match_search, "search_block", die_after_two)
    assert match(folder, tmp_path / "out", angle_step=40.0).failed
    assert len(list((tmp_path / "out/blocks").glob("*/*.npz"))) == 2
    calls = []
    monkeypatch.setattr(match_search, "search_block", lambda *a, **k: (calls.append(1), work(*a, **k))[1])
    assert not match(folder, tmp_path / "out", angle_step=40.0).failed
    resumed = len(calls)
    calls.clear()
    assert not match(folder, tmp_path / "whole", angle_step=40.0).failed
    assert resumed == len(calls) - 2 > 0
    name = read_tomograms(folder / "tomo/tomograms.star")[0].name
    for file in ("particles.star", f"scores/{name}.mrc", f"models/{name}.mod"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert not list((tmp_path / "out/blocks").glob("*"))


def refuse(folder, out, **changes):
    report = match(folder, out, **changes)
    (problem,) = report.failed.values()
    return problem.error if hasattr(problem, "error") else str(problem)


def write_reference(folder, path, **header):
    (reference,) = (folder / "simulate/truth/references").glob("*.mrc")
    write_mrc(path, read_mrc(reference), **header)
    return path


def test_a_template_larger_than_the_region_is_refused(folder, tmp_path):
    problem = refuse(folder, tmp_path / "out", size=(500.0, 500.0, 200.0))
    assert "larger than the region" in problem
    problem = refuse(folder, tmp_path / "radius", radius=2000.0)
    assert "larger than the region" in problem


def test_wrong_pixel_sizes_are_refused(folder, tmp_path):
    small = write_reference(folder, tmp_path / "small.mrc", voxel_size_angstrom=1.0)
    assert "is the voxel size of 'small', 1 Å, right?" in refuse(folder, tmp_path / "a", template=(small,))
    large = write_reference(folder, tmp_path / "large.mrc", voxel_size_angstrom=200.0)
    assert "at most half of `lowpass`" in refuse(folder, tmp_path / "b", template=(large,))
    assert "`pixel_size` must be at least the voxel" in refuse(folder, tmp_path / "c", pixel_size=10.0)
    assert "`lowpass` must be at least two voxels" in refuse(folder, tmp_path / "d", lowpass=50.0)


def test_an_empty_mask_is_refused(folder, tmp_path):
    (reference,) = (folder / "simulate/truth/references").glob("*.mrc")
    mask = tmp_path / "mask.mrc"
    values = read_mrc(reference)
    write_mrc(mask, np.zeros_like(values), voxel_size_angstrom=20.0)
    assert "is zero within" in refuse(folder, tmp_path / "out", mask=mask)


def test_empty_and_outer_regions_are_refused(folder, tmp_path):
    series = read_tilt_series(folder / "tomo/tomograms.star")
    (tomogram,) = read_tomograms(folder / "tomo/tomograms.star")
    write_mrc(tmp_path / "empty.mrc", np.zeros(tomogram.shape, np.float32), voxel_size_angstrom=40.0)
    empty = replace(tomogram, path=tmp_path / "empty.mrc", weights_path=None)
    star = folder / f"tomo/tilt_series/{tomogram.name}.star"
    write_tomograms(tmp_path / "tomograms.star", [empty], [(series[tomogram.name], star)])
    assert "all its voxels are zero" in refuse(folder, tmp_path / "a", tomograms=tmp_path / "tomograms.star")
    problem = refuse(folder, tmp_path / "b", size=(600.0,) * 3, centre=(9000.0, 0.0, 0.0))
    assert "lies outside tomogram" in problem
    assert "GB" in refuse(folder, tmp_path / "c", memory=0.001)


def test_parameters_that_do_not_go_together_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="`centre` goes with `size`"):
        match(folder, tmp_path / "a", centre=(0.0, 0.0, 0.0))
    with pytest.raises(UserError, match="`helical` goes with"):
        match(folder, tmp_path / "b", helical=True)
    with pytest.raises(UserError, match="must be a map"):
        match(folder, tmp_path / "c", template=(folder / "tomo/tomograms.star",))
    with pytest.raises(ValidationError):
        match(folder, tmp_path / "d", lowpass=-1.0)
