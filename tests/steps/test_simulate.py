"""The simulate step: what it writes is read back, and held against trigonometry and RELION's angles."""

import json

import mrcfile
import numpy as np
import pytest
from pydantic import ValidationError
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from verglas.errors import UserError
from verglas.io.relion_particles import read_particles
from verglas.io.relion_tilt_series import read_tilt_series
from verglas.steps.simulate import SIMULATE_STEP, SimulateParams, estimate, list_items, make_series
from verglas.steps.step import RunOptions, run_step

QUIET = RunOptions(quiet=True)
SMALL = {
    "image_size": (80, 64),
    "pixel_size": 20.0,
    "thickness": 500.0,
    "max_tilt": 40.0,
    "tilt_step": 20.0,
    "copies": 4,
    "vesicles": 0,
    "gold": 2,
    "noise": False,
    "seed": 7,
}


def run(folder, **changes):
    return run_step(SIMULATE_STEP, SimulateParams(**(SMALL | changes)), folder, options=QUIET)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulate") / "job"
    report = run(folder, count=2)
    assert report.done == ("TS_01", "TS_02")
    assert report.failed == {}
    return folder


def read_volume(path):
    with mrcfile.open(path, permissive=False) as file:
        return file.data.copy(), float(file.voxel_size.x)


def test_the_microscope_knows_less_than_the_truth(job):
    nominal = read_tilt_series(job / "tilt_series.star")
    truth = read_tilt_series(job / "truth/tilt_series.star")
    assert list(nominal) == list(truth) == ["TS_01", "TS_02"]
    for name, known in nominal.items():
        true = truth[name]
        np.testing.assert_array_equal(known.nominal_tilt_deg, [-40, -20, 0, 20, 40])
        np.testing.assert_array_equal(known.y_tilt_deg, known.nominal_tilt_deg)
        np.testing.assert_array_equal(known.z_rot_deg, 85.0)
        np.testing.assert_array_equal(known.defocus_u_angstrom, 30000.0)
        assert not known.x_shift_angstrom.any()
        assert not known.y_shift_angstrom.any()
        # Dose-symmetric: each view before the next one further out.
        np.testing.assert_array_equal(known.pre_exposure_e_per_a2, [9, 6, 0, 3, 12])
        np.testing.assert_allclose(true.y_tilt_deg, known.nominal_tilt_deg + 1.5, atol=0.6)
        np.testing.assert_allclose(true.z_rot_deg, 86.0)
        assert 5 < np.hypot(true.x_shift_angstrom, true.y_shift_angstrom).max() < 200
        assert true.images == known.images
        assert true.image_shape == (64, 80)
    assert not np.allclose(truth["TS_01"].x_shift_angstrom, truth["TS_02"].x_shift_angstrom)


def test_the_images_are_electron_counts(job):
    with mrcfile.open(job / "stacks/TS_01.mrc", permissive=False) as file:
        assert file.is_image_stack()
        assert file.data.shape == (5, 64, 80)
        assert file.voxel_size.x == pytest.approx(20.0)
        images = file.data.copy()
    tilt = np.deg2rad(read_tilt_series(job / "truth/tilt_series.star")["TS_01"].y_tilt_deg)
    # Most pixels see ice alone, which lets exp(-path / 3500 Å) of the electrons pass.
    ice = 3.0 * 20.0**2 * np.exp(-500.0 / 3500.0 / np.cos(tilt))
    np.testing.assert_allclose(np.median(images, axis=(1, 2)), ice, rtol=0.03)


def project(series, row, point):
    """Place of a specimen point in a view by trigonometry, pixels."""
    a, b, c = np.deg2rad([series.x_tilt_deg[row], series.y_tilt_deg[row], series.z_rot_deg[row]])
    x, y, z = point
    y, z = y * np.cos(a) - z * np.sin(a), y * np.sin(a) + z * np.cos(a)
    x = x * np.cos(b) + z * np.sin(b)
    x, y = x * np.cos(c) - y * np.sin(c), x * np.sin(c) + y * np.cos(c)
    height, width = series.image_shape
    return (
        width // 2 + (x + series.x_shift_angstrom[row]) / series.pixel_size_angstrom,
        height // 2 + (y + series.y_shift_angstrom[row]) / series.pixel_size_angstrom,
    )


def test_gold_lies_where_the_truth_says(tmp_path):
    run(tmp_path / "gold", copies=0, gold=4, gold_diameter=160.0)
    images, _ = read_volume(tmp_path / "gold/stacks/TS_01.mrc")
    truth = read_tilt_series(tmp_path / "gold/truth/tilt_series.star")["TS_01"]
    beads = json.loads((tmp_path / "gold/truth/specimens/TS_01.json").read_text())["beads"]
    assert [bead["radius_angstrom"] for bead in beads] == [80.0] * 4
    found = 0
    for row in range(len(truth)):
        places = np.array([project(truth, row, bead["centre_angstrom"]) for bead in beads])
        for x, y in places:
            apart = np.sort(np.hypot(*(places - (x, y)).T))[1]
            if not (12 < x < 68 and 12 < y < 52) or apart < 16:
                continue
            j, i = round(y), round(x)
            part = images[row, j - 5 : j + 6, i - 5 : i + 6].astype(float)
            dark = np.clip(np.median(images[row]) * 0.8 - part, 0, None)
            v, u = np.indices(dark.shape)
            centre = (dark * u).sum() / dark.sum() + i - 5, (dark * v).sum() / dark.sum() + j - 5
            np.testing.assert_allclose(centre, (x, y), atol=0.25)
            found += 1
    assert found >= 6


def test_molecules_lie_in_the_true_volume_as_their_angles_say(job):
    density, voxel = read_volume(job / "truth/volumes/TS_02.mrc")
    reference, reference_voxel = read_volume(job / "truth/references/ribosome.mrc")
    assert voxel == reference_voxel == 20.0
    # The tilt axis runs along the images' x, so their 80 pixels are the specimen's y.
    assert density.shape == (30, 80, 64)
    particles = read_particles(job / "truth/particles.star")
    assert list(particles.tomogram_names) == ["TS_01"] * 4 + ["TS_02"] * 4
    assert set(particles.extra["vglSpecies"]) == {"ribosome"}
    bright = np.argwhere(reference > 0.15 * reference.max())
    points = (bright - np.array(reference.shape) // 2)[:, ::-1] * voxel
    correlations = []
    for row in np.flatnonzero(particles.tomogram_names == "TS_02"):
        # Intrinsic ZYZ is Rz(rot) Ry(tilt) Rz(psi), RELION's way from the specimen to the reference.
        turn = Rotation.from_euler("ZYZ", particles.angles_deg[row], degrees=True).inv()
        places = (turn.apply(points) + particles.positions_angstrom[row]) / voxel
        indices = places[:, ::-1] + np.array(density.shape) // 2
        inside = ((indices >= 0) & (indices <= np.array(density.shape) - 1)).all(axis=1)
        values = map_coordinates(density, indices[inside].T, order=3)
        wanted = reference[tuple(bright[inside].T)]
        correlations.append(np.corrcoef(values, wanted)[0, 1])
    assert len(correlations) == 4
    assert min(correlations) > 0.9


def test_gold_in_the_true_volume_has_its_potential(job):
    density, voxel = read_volume(job / "truth/volumes/TS_01.mrc")
    beads = json.loads((job / "truth/specimens/TS_01.json").read_text())["beads"]
    assert len(beads) == 2
    for bead in beads:
        place = np.round(np.array(bead["centre_angstrom"])[::-1] / voxel).astype(int)
        assert density[tuple(place + np.array(density.shape) // 2)] == pytest.approx(25.0, rel=0.1)


def test_a_series_does_not_depend_on_its_neighbours(job, tmp_path):
    run(tmp_path / "one")
    for path in ("stacks/TS_01.mrc", "truth/volumes/TS_01.mrc", "truth/particles/TS_01.star"):
        assert (tmp_path / "one" / path).read_bytes() == (job / path).read_bytes()
    assert not np.array_equal(
        read_volume(job / "stacks/TS_02.mrc")[0], read_volume(job / "stacks/TS_01.mrc")[0]
    )


def test_a_run_is_continued(job):
    stack = job / "stacks/TS_02.mrc"
    before, other = stack.read_bytes(), (job / "stacks/TS_01.mrc").stat().st_mtime_ns
    stack.unlink()
    report = run(job, count=2)
    assert (report.done, report.skipped) == (("TS_02",), ("TS_01",))
    assert stack.read_bytes() == before
    assert (job / "stacks/TS_01.mrc").stat().st_mtime_ns == other


def test_relion_reads_the_particles(job, relion):
    printed = relion(
        "relion_star_printtable",
        job / "truth/particles.star",
        "data_particles",
        *("rlnCenteredCoordinateXAngst", "rlnAngleRot", "rlnTomoName"),
    )
    particles = read_particles(job / "truth/particles.star")
    rows = [line.split() for line in printed.splitlines() if line.strip()]
    assert [row[2] for row in rows] == list(particles.tomogram_names)
    np.testing.assert_allclose([float(row[1]) for row in rows], particles.angles_deg[:, 0], atol=1e-3)


def test_atoms_become_molecules(tmp_path):
    rng = np.random.default_rng(1)
    lines = [
        f"ATOM  {i + 1:5d}  CA  ALA A{i + 1:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 30.00           C"
        for i, (x, y, z) in enumerate(rng.normal(40, 20, (200, 3)))
    ]
    model = tmp_path / "blob.pdb"
    model.write_text("\n".join([*lines, "END"]) + "\n")
    run(tmp_path / "job", model=model, gold=0)
    reference, voxel = read_volume(tmp_path / "job/truth/references/blob.mrc")
    # Kirkland's f(0) of carbon is 2.51 Å, Peng's 2.50; times h²/2πme, and 0.4 of it stands out of ice.
    assert reference.sum(dtype=float) * voxel**3 == pytest.approx(200 * 2.5 * 47.878 * 0.4, rel=0.02)
    assert set(read_particles(tmp_path / "job/truth/particles.star").extra["vglSpecies"]) == {"blob"}


def test_noise_is_counted(tmp_path):
    clean = make_series("TS_01", SimulateParams(**SMALL), tmp_path / "x.mrc").images
    noisy = make_series("TS_01", SimulateParams(**SMALL | {"noise": True}), tmp_path / "x.mrc").images
    assert (noisy == np.rint(noisy)).all()
    assert not (clean == np.rint(clean)).all()
    difference = (noisy - clean) / np.sqrt(clean)
    # Counting gives a deviation of one; the ice adds a little.
    assert 0.98 < difference.std() < 1.2
    assert abs(difference.mean()) < 0.05


def test_a_perfect_stage_and_true_voxels_of_another_size(tmp_path):
    params = SimulateParams(**SMALL | {"misalignment": 0.0, "truth_voxel_size": 25.0})
    made = make_series("TS_01", params, tmp_path / "x.mrc")
    for name in ("y_tilt_deg", "z_rot_deg", "x_shift_angstrom", "defocus_u_angstrom"):
        np.testing.assert_array_equal(getattr(made.scheme.truth, name), getattr(made.scheme.nominal, name))
    assert made.density.shape == (24, 64, 51)
    assert made.voxel_size_angstrom == 25.0


def test_the_estimate_knows_the_disk(job):
    params = SimulateParams(**SMALL, count=2)
    told = estimate(list_items(params), params)
    written = sum(path.stat().st_size for path in job.rglob("*.mrc"))
    assert told.disk_bytes == pytest.approx(written, rel=0.1)
    assert told.seconds > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (64, 16)}, r"`image_size` must be 32 to 16384 pixels each way; got \(64, 16\)"),
        ({"name": "a/b"}, "the name 'a/b' cannot name files"),
        ({"truth_voxel_size": 0.5, "image_size": (8000, 8000)}, "larger `truth_voxel_size`"),
    ],
)
def test_bad_parameters_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path / "job", **changes)
    assert not (tmp_path / "job").exists()


def test_out_of_bounds_is_refused():
    for field, value in (("max_tilt", 80), ("copies", -1), ("pixel_size", 0), ("gold", -2), ("tilts", 3)):
        with pytest.raises(ValidationError, match=field):
            SimulateParams(**{field: value})


def test_what_does_not_fit_fails_its_item(tmp_path):
    report = run(tmp_path / "job", vesicles=1)
    assert "the slab is 500 Å thick; expected at least 853 Å" in report.failed["TS_01"]
    assert report.summary is None


def test_a_carbon_film_lies_under_one_half(tmp_path):
    """150 Å of 5 V leave exp(-150 / 1800) of the electrons, and turn the phase of the rest, of which the amplitude
    contrast sees 7 %; the interaction constant of 300 kV is 6.526e-4 per V·Å. The tilt axis lies along y.
    """
    still = SMALL | {"axis_angle": 0.0, "misalignment": 0.0, "copies": 0, "gold": 0, "max_tilt": 0.0}
    plain, carbon = (
        make_series("TS_01", SimulateParams(**still, carbon_edge=edge), tmp_path / "x.mrc").images[0]
        for edge in (None, 0.0)
    )
    assert plain.shape == (64, 80)
    ratio = carbon.mean(axis=0) / plain.mean(axis=0)
    np.testing.assert_allclose(ratio[:30], 1.0, atol=0.01)
    expected = np.exp(-150 / 1800) * (1 - 2 * 0.07 * 6.526e-4 * 150 * 5)
    assert ratio[50:].mean() == pytest.approx(expected, rel=0.02)
