"""Particle stacks, micrographs and movies."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from verglas.algo.simulation.detector import make_camera
from verglas.algo.simulation.imaging import interaction_constant
from verglas.algo.simulation.movies import Motion, make_motion, simulate_micrograph, simulate_movie
from verglas.algo.simulation.particles import simulate_particles
from verglas.algo.simulation.phantoms import make_blob_phantom
from verglas.algo.simulation.render import render_volume
from verglas.algo.simulation.scatterers import Scatterers
from verglas.algo.simulation.specimen import Species, arrange_copies
from verglas.algo.simulation.views import Conditions, View
from verglas.errors import UserError
from verglas.model import Optics

BODY = make_blob_phantom(60, 40.0, seed=5, sigma_angstrom=5.0)
CLEAN = Conditions(damage=False, noise=False, mean_free_path_angstrom=np.inf)


@pytest.mark.relion
def test_relion_projects_the_truth_volume_with_its_own_ctf_to_our_images(
    relion: Callable[..., str], tmp_path: Path
) -> None:
    n, pixel = 96, 3.0
    angles = np.array([[0.0, 0, 0], [35, 65, -20], [-120, 100, 80]])
    offsets = np.array([[0.0, 0], [9, -6], [-3, 12]])
    u, v, axis = np.array([9000.0, 11000, 8000]), np.array([8600.0, 10000, 8000]), np.array([30.0, -70, 0])
    with mrcfile.new(tmp_path / "map.mrc", data=render_volume(BODY, (n, n, n), pixel)) as file:
        file.voxel_size = pixel
    write_star(tmp_path / "in.star", angles, offsets, u, v, axis)
    relion("relion_project", "--i", "map.mrc", "--o", "out", "--ang", "in.star", "--ctf", "--angpix", pixel)
    theirs = np.asarray(mrcfile.read(tmp_path / "out.mrcs"))
    ours = simulate_particles(
        BODY,
        angles,
        Optics(pixel, amplitude_contrast=0.07),
        n,
        defocus_u_angstrom=u,
        defocus_v_angstrom=v,
        defocus_angle_deg=axis,
        offsets_angstrom=offsets,
        exposure_e_per_a2=1.0,
        thickness_angstrom=0.0,
        conditions=CLEAN,
    )
    for mine, their in zip(ours, theirs, strict=True):
        # RELION draws protein bright and leaves out the constants; we count electrons and protein is dark.
        contrast = (1 - mine / pixel**2) / (2 * interaction_constant(300.0) * pixel)
        middle = (slice(20, 76), slice(20, 76))
        a, b = contrast[middle].ravel(), their[middle].ravel()
        assert np.corrcoef(a, b)[0, 1] > 0.998
        assert (a @ b) / (b @ b) == pytest.approx(1.0, abs=0.03)


def write_star(
    path: Path, angles: np.ndarray, offsets: np.ndarray, u: np.ndarray, v: np.ndarray, axis: np.ndarray
) -> None:
    optics = ["rlnOpticsGroup", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"]
    optics += ["rlnImagePixelSize", "rlnImageSize", "rlnImageDimensionality"]
    columns = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"]
    columns += ["rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnOpticsGroup"]
    rows = np.column_stack([angles, -offsets, u, v, axis])
    lines = ["data_optics", "", "loop_", *(f"_{name}" for name in optics), "1 300 2.7 0.07 3.0 96 2", ""]
    lines += ["data_particles", "", "loop_", *(f"_{name}" for name in columns)]
    lines += [" ".join(f"{value:.6f}" for value in row) + " 1" for row in rows]
    path.write_text("\n".join([*lines, ""]))


def test_particles_are_the_seeds_and_match_their_arrays() -> None:
    optics = Optics(6.0)

    def make(workers: int) -> np.ndarray:
        conditions = Conditions(ice_noise=True)
        return simulate_particles(
            BODY,
            np.zeros((3, 3)),
            optics,
            32,
            defocus_u_angstrom=1e4,
            conditions=conditions,
            seed=1,
            workers=workers,
        )

    one = make(1)
    np.testing.assert_array_equal(one, make(2))
    assert not np.array_equal(one[0], one[1])
    assert one.mean() == pytest.approx(30 * 36 * np.exp(-300 / 3500), rel=0.03)
    with pytest.raises(UserError, match="angles_deg"):
        simulate_particles(BODY, np.zeros(3), optics, 32, defocus_u_angstrom=1e4)
    with pytest.raises(UserError, match="defocus_v_angstrom"):
        simulate_particles(
            BODY, np.zeros((3, 3)), optics, 32, defocus_u_angstrom=1e4, defocus_v_angstrom=np.zeros(2)
        )


def test_micrograph_is_the_sum_of_its_frames() -> None:
    species = Species("x", BODY)
    specimen = arrange_copies("m", species, np.array([[20.0, -10, 0]]), np.zeros((1, 3)), 200.0)
    view = View(np.eye(4), 10000.0, 10000.0, exposure_e_per_a2=40.0)
    optics = Optics(5.0)
    still = Motion(np.zeros((4, 2)), np.zeros((2, 3, 5)))
    frames = simulate_movie(specimen, view, (64, 64), optics, still, seed=3)
    expected = simulate_micrograph(specimen, view, (64, 64), optics, conditions=Conditions(noise=False))
    assert frames.shape == (4, 64, 64)
    assert frames.dtype == np.uint16
    difference = frames.sum(axis=0, dtype=float) - expected
    assert difference.mean() == pytest.approx(0, abs=3 * float(np.sqrt(expected.mean()) / 64))
    assert difference.var() == pytest.approx(expected.mean(), rel=0.1)


@pytest.mark.parametrize("tilt_deg", [0.0, 40.0])
def test_frames_follow_the_motion(tilt_deg: float) -> None:
    t = np.deg2rad(tilt_deg)
    matrix = np.eye(4)
    matrix[:3, :3] = [[np.cos(t), 0, np.sin(t)], [0, 1, 0], [-np.sin(t), 0, np.cos(t)]]
    # A bright blob, in turn as a molecule and as a part of a film.
    blob = Scatterers(np.zeros((1, 3)), np.array([-4e5]), np.array([12.0]))
    place = np.array([[60.0, -40.0, 0.0]])
    nothing = arrange_copies("m", Species("b", blob), np.empty((0, 3)), np.empty((0, 3)))
    film = Scatterers(place, blob.weights_v_a3, blob.sigmas_angstrom)
    cases = (
        arrange_copies("m", Species("b", blob), place, np.zeros((1, 3))),
        replace(nothing, films=(film,)),
    )
    local = np.zeros((2, 3, 5))
    local[0, 0, 0], local[1, 1, 4] = 30.0, 200.0
    motion = Motion(np.array([[0.0, 0.0], [8.0, -6.0], [15.0, 4.0]]), local)
    view = View(matrix, 0.0, 0.0, exposure_e_per_a2=3e3)
    for specimen in cases:
        frames = simulate_movie(
            specimen, view, (48, 64), Optics(6.0, amplitude_contrast=1.0), motion, conditions=FADELESS, seed=1
        )
        for f, frame in enumerate(frames):
            x, y = place[0, 0] * np.cos(t), -40.0
            share_x, share_y = x / (64 * 6), y / (48 * 6)
            s = f / 2
            dx = motion.trajectory_angstrom[f, 0] + 30.0 * s * share_x
            dy = motion.trajectory_angstrom[f, 1] + 200.0 * s**2 * share_x * share_y
            weights = np.clip(frame - np.median(frame) * 1.05, 0, None)
            rows, columns = np.indices(frame.shape)
            found = (weights * columns).sum() / weights.sum(), (weights * rows).sum() / weights.sum()
            np.testing.assert_allclose(found, (32 + (x + dx) / 6, 24 + (y + dy) / 6), atol=0.03)


FADELESS = Conditions(ctf=False, damage=False, mean_free_path_angstrom=np.inf)


def test_later_frames_are_more_damaged() -> None:
    specimen = arrange_copies("m", Species("x", BODY), np.zeros((1, 3)), np.zeros((1, 3)))
    view = View(np.eye(4), 8000.0, 8000.0, exposure_e_per_a2=900.0)
    still = Motion(np.zeros((3, 2)), np.zeros((2, 3, 5)))
    for damage in (True, False):
        conditions = Conditions(damage=damage)
        frames = simulate_movie(specimen, view, (48, 48), Optics(5.0), still, conditions=conditions, seed=1)
        # Counting adds the mean to the variance; what is over is the signal's.
        first, last = (frames[i].var() - frames[i].mean() for i in (0, 2))
        assert first > 1000
        assert last < 0.4 * first if damage else last == pytest.approx(first, rel=0.1)


def test_movie_through_a_camera_is_flat_after_its_gain() -> None:
    specimen = arrange_copies("m", Species("x", BODY), np.empty((0, 3)), np.empty((0, 3)))
    camera = make_camera((96, 96), seed=1, hot_fraction=2e-3)
    view = View(np.eye(4), 8000.0, 8000.0, exposure_e_per_a2=100.0)
    still = Motion(np.zeros((2, 2)), np.zeros((2, 3, 5)))
    frames = simulate_movie(specimen, view, (96, 96), Optics(2.0), still, camera=camera, seed=1)
    flat = (frames * camera.gain)[:, ~camera.hot & ~camera.dead]
    assert flat.mean() == pytest.approx(200.0, rel=5e-3)
    assert frames[:, camera.hot].mean() > 240


def test_motion_starts_at_rest_slows_down_and_is_the_seeds() -> None:
    motion = make_motion(20, seed=4, drift_angstrom=25.0)
    assert len(motion) == 20
    np.testing.assert_array_equal(motion.shifts_at(0, np.array([[0.4, -0.3]])), 0)
    steps = np.linalg.norm(np.diff(motion.trajectory_angstrom, axis=0), axis=1)
    assert steps[0] > 2 * steps[-1]
    assert np.linalg.norm(motion.trajectory_angstrom[-1]) == pytest.approx(25.0)
    np.testing.assert_array_equal(make_motion(20, seed=4).local_angstrom, motion.local_angstrom)
    with pytest.raises(UserError, match="frames"):
        make_motion(0, seed=1)
    with pytest.raises(UserError, match="trajectory"):
        Motion(np.zeros((3, 3)), np.zeros((2, 3, 5)))
