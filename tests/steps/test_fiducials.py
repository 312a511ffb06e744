"""The fiducials step on a simulated series whose beads are known."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from verglas.errors import UserError
from verglas.io.mrc import read_mrc, write_mrc
from verglas.io.relion_tilt_series import read_tilt_series
from verglas.io.star import read_star, write_star
from verglas.steps.fiducials import FIDUCIALS_STEP, FiducialsParams
from verglas.steps.reconstruct import RECONSTRUCT_STEP, ReconstructParams
from verglas.steps.simulate import SIMULATE_STEP, SimulateParams
from verglas.steps.step import RunOptions, run_step

QUIET = RunOptions(quiet=True)
PIXEL = 12.0
SIZE = 192


@pytest.fixture(scope="module")
def simulation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fiducials") / "simulate"
    params = SimulateParams(
        image_size=(SIZE, SIZE),
        pixel_size=PIXEL,
        thickness=700.0,
        tilt_step=8.0,
        copies=15,
        vesicles=0,
        gold=7,
        seed=11,
        truth_voxel_size=4 * PIXEL,
    )
    run_step(SIMULATE_STEP, params, folder, options=QUIET)
    return folder


@pytest.fixture(scope="module")
def job(simulation):
    folder = simulation.parent / "fiducials"
    params = FiducialsParams(images=(simulation / "truth/tilt_series.star",), bead_diameter=100.0)
    report = run_step(FIDUCIALS_STEP, params, folder, options=QUIET)
    assert report.done == ("TS_01",)
    assert report.failed == {}
    return folder


def true_beads(simulation):
    """Centres xyz in Å."""
    told = json.loads((simulation / "truth/specimens/TS_01.json").read_text())
    return np.array([bead["centre_angstrom"] for bead in told["beads"]])


def true_places(simulation, margin=0.0):
    """Pixels xy, from the first, of the true beads in each view, by trigonometry written out."""
    series = read_tilt_series(simulation / "truth/tilt_series.star")["TS_01"]
    beads = true_beads(simulation)
    places = []
    for i in range(len(series)):
        b, a, c = np.deg2rad([series.y_tilt_deg[i], series.z_rot_deg[i], series.x_tilt_deg[i]])
        x, y, z = beads.T
        y, z = y * np.cos(c) - z * np.sin(c), y * np.sin(c) + z * np.cos(c)
        x = x * np.cos(b) + z * np.sin(b)
        u = x * np.cos(a) - y * np.sin(a) + series.x_shift_angstrom[i]
        v = x * np.sin(a) + y * np.cos(a) + series.y_shift_angstrom[i]
        place = np.stack([u, v], axis=1) / PIXEL + SIZE // 2
        places.append(place[((place >= margin) & (place <= SIZE - 1 - margin)).all(axis=1)])
    return places


def test_every_bead_is_masked_in_every_view(simulation, job):
    masks = read_mrc(job / "masks/TS_01.mrc", np.int8)
    assert set(np.unique(masks)) == {0, 1}
    for mask, places in zip(masks, true_places(simulation), strict=True):
        x, y = np.rint(places).astype(int).T
        assert mask[y, x].all()
    assert masks.mean() < 0.1


def test_only_masked_pixels_change_and_gold_is_gone(simulation, job):
    before, after = read_mrc(simulation / "stacks/TS_01.mrc"), read_mrc(job / "stacks/TS_01.mrc")
    masked = read_mrc(job / "masks/TS_01.mrc", np.int8) == 1
    np.testing.assert_array_equal(before[~masked], after[~masked])
    for view in range(len(before)):
        clear, inside = after[view][~masked[view]], after[view][masked[view]]
        assert abs(inside.mean() - clear.mean()) < 0.6 * clear.std()
        assert inside.std() == pytest.approx(clear.std(), rel=0.25)


def test_the_star_files_lead_to_the_erased_views_and_to_the_beads(simulation, job):
    series = read_tilt_series(job / "tilt_series.star")["TS_01"]
    truth = read_tilt_series(simulation / "truth/tilt_series.star")["TS_01"]
    assert {image.path.resolve() for image in series.images} == {(job / "stacks/TS_01.mrc").resolve()}
    assert [image.section for image in series.images] == list(range(len(truth)))
    np.testing.assert_allclose(series.x_shift_angstrom, truth.x_shift_angstrom, atol=1e-3)
    tables = read_star(job / "beads/TS_01.star")
    points = tables["points"].to_numpy(float)
    distance = np.linalg.norm(points[:, None] - true_beads(simulation), axis=2).min(axis=0)
    assert np.median(distance) < 0.5 * PIXEL
    found = tables["beads"]
    for view, places in enumerate(true_places(simulation, margin=6), start=1):
        here = found[found["vglView"] == view][["rlnCoordinateX", "rlnCoordinateY"]].to_numpy(float)
        assert np.linalg.norm(here[:, None] - places, axis=2).min(axis=0).max() < 3


def test_the_tomogram_has_no_ghosts(simulation, job):
    volumes = []
    for name, star in (("raw", simulation / "truth/tilt_series.star"), ("erased", job / "tilt_series.star")):
        folder = simulation.parent / name
        params = ReconstructParams(tilt_series=star, thickness=900.0)
        run_step(RECONSTRUCT_STEP, params, folder, options=QUIET)
        volumes.append(read_mrc(folder / "tomograms/TS_01.mrc"))
    beads = true_beads(simulation)[:, ::-1]
    index = np.rint(beads / PIXEL).astype(int) + [n // 2 for n in volumes[0].shape]
    index = index[((index >= 3) & (index < np.array(volumes[0].shape) - 3)).all(axis=1)]
    raw, erased = (
        [v[z - 2 : z + 3, y - 2 : y + 3, x - 2 : x + 3].mean() for z, y, x in index] for v in volumes
    )
    scatter = volumes[1].std()
    assert np.mean(raw) < -2 * scatter
    assert abs(np.mean(erased)) < 0.3 * scatter


def test_the_report_has_figures_and_values(job):
    summary = json.loads((job / "summary.json").read_text())
    assert [figure["path"] for figure in summary["figures"]] == [
        f"figures/TS_01_{kind}.png" for kind in ("erased", "zooms", "masks", "spectra")
    ]
    assert abs(summary["values"]["spectrum"]["value"]) < 25
    assert summary["values"]["in space"]["value"] >= 7


def test_a_second_run_gives_the_same_bytes(simulation, job):
    folder = simulation.parent / "again"
    params = FiducialsParams(images=(simulation / "truth/tilt_series.star",), bead_diameter=100.0)
    run_step(FIDUCIALS_STEP, params, folder, options=QUIET)
    for name in ("stacks/TS_01.mrc", "masks/TS_01.mrc", "beads/TS_01.star", "figures/TS_01_erased.png"):
        assert (folder / name).read_bytes() == (job / name).read_bytes()


def test_without_erasing_only_masks_are_written(simulation):
    folder = simulation.parent / "masks"
    params = FiducialsParams(
        images=(simulation / "truth/tilt_series.star",), bead_diameter=100.0, erase=False
    )
    run_step(FIDUCIALS_STEP, params, folder, options=QUIET)
    assert not (folder / "stacks").exists()
    series = read_tilt_series(folder / "tilt_series.star")["TS_01"]
    assert series.images[0].path.resolve() == (simulation / "stacks/TS_01.mrc").resolve()
    assert read_mrc(folder / "masks/TS_01.mrc", np.int8).any()


def test_beads_larger_than_the_views_are_refused(simulation):
    folder = simulation.parent / "large"
    params = FiducialsParams(images=(simulation / "truth/tilt_series.star",), bead_diameter=1e5)
    report = run_step(FIDUCIALS_STEP, params, folder, options=QUIET)
    assert "diameter" in report.failed["TS_01"]
    with pytest.raises(UserError, match="does not exist"):
        run_step(FIDUCIALS_STEP, FiducialsParams(images=(folder / "no.star",)), folder / "2", options=QUIET)


@pytest.fixture
def micrographs(tmp_path):
    """Two micrographs with discs, and the table that RELION keeps of them."""
    y, x = np.indices((220, 240)) - np.array([110, 120])[:, None, None]
    names = []
    for seed, name in enumerate(("m1", "m2")):
        image = np.random.default_rng(seed).normal(50, 3, (220, 240))
        for place in ((-60, 20), (45, -33), (80, 70)):
            image[np.hypot(x - place[0], y - place[1]) < 5] -= 25
        (tmp_path / "mics").mkdir(exist_ok=True)
        names.append(tmp_path / f"mics/{name}.mrc")
        write_mrc(names[-1], image.astype(np.float32), voxel_size_angstrom=10.0)
    optics = pd.DataFrame(
        {"rlnOpticsGroup": [1], "rlnOpticsGroupName": ["opticsGroup1"], "rlnMicrographPixelSize": [10.0]}
    )
    table = pd.DataFrame(
        {
            "rlnMicrographName": [str(n) for n in names],
            "rlnOpticsGroup": [1, 1],
            "rlnCtfMaxResolution": [4.0, 5.0],
        }
    )
    write_star(tmp_path / "micrographs.star", {"optics": optics, "micrographs": table})
    return tmp_path


@pytest.mark.parametrize("given", ["star", "files"])
def test_micrographs_are_erased_and_their_table_is_kept(micrographs, given):
    images = (
        (micrographs / "micrographs.star",)
        if given == "star"
        else tuple(micrographs / f"mics/{name}.mrc" for name in ("m1", "m2"))
    )
    out = micrographs / "out"
    params = FiducialsParams(images=images, bead_diameter=100.0, network=False)
    assert run_step(FIDUCIALS_STEP, params, out, options=QUIET).done == ("m1", "m2")
    for name in ("m1", "m2"):
        before, after = read_mrc(micrographs / f"mics/{name}.mrc")[0], read_mrc(out / f"stacks/{name}.mrc")[0]
        assert before.min() < 30
        assert after.min() > 30
        assert len(read_star(out / f"beads/{name}.star")["beads"]) == 3
    assert not (out / "tilt_series.star").exists()
    assert (out / "micrographs.star").exists() == (given == "star")
    if given == "star":
        table = read_star(out / "micrographs.star")["micrographs"]
        assert [Path(name).resolve() for name in table["rlnMicrographName"]] == [
            (out / f"stacks/{name}.mrc").resolve() for name in ("m1", "m2")
        ]
        assert table["rlnCtfMaxResolution"].tolist() == [4.0, 5.0]


def test_micrographs_that_cannot_be_read_are_told(micrographs):
    write_mrc(micrographs / "stack.mrc", np.zeros((3, 80, 80), np.float32), voxel_size_angstrom=5.0)
    with pytest.raises(UserError, match="holds 3 images; expected one micrograph"):
        FIDUCIALS_STEP.list_items(FiducialsParams(images=(micrographs / "stack.mrc",)))
    with pytest.raises(UserError, match="does not exist"):
        FIDUCIALS_STEP.list_items(FiducialsParams(images=(micrographs / "none.mrc",)))


def test_the_network_masks_a_grid_bar_without_erasing_it(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.poisson(60.0, (300, 300)).astype(np.float32)
    image[:, 190:] = rng.poisson(1.0, (300, 110))
    write_mrc(tmp_path / "bar.mrc", image, voxel_size_angstrom=20.0)
    params = FiducialsParams(images=(tmp_path / "bar.mrc",), bead_diameter=120.0)
    run_step(FIDUCIALS_STEP, params, tmp_path / "out", options=QUIET)
    masked = read_mrc(tmp_path / "out/masks/bar.mrc", np.int8)[0] == 1
    assert masked[:, 210:].mean() > 0.8
    assert masked[:, :170].mean() < 0.05
    after = read_mrc(tmp_path / "out/stacks/bar.mrc")[0]
    np.testing.assert_array_equal(after[:, 210:], image[:, 210:])
    values = json.loads((tmp_path / "out/items/bar.json").read_text())["values"]
    assert 20 < values["bar_percent"] < 45
