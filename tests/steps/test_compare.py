"""The compare step: perfect tomograms, wrong ones, and the region that views measure."""

import json

import numpy as np
import pytest
import torch

from verglas.api import reconstruct
from verglas.errors import UserError
from verglas.io.mrc import read_mrc, write_mrc
from verglas.io.relion_tilt_series import read_tilt_series, write_one_tilt_series
from verglas.io.relion_tomograms import write_tomograms
from verglas.model import ImageReference, Optics, TiltSeries, Tomogram
from verglas.steps.compare import COMPARE_STEP, CompareParams, find_resolution, measured_region
from verglas.steps.simulate import SIMULATE_STEP, SimulateParams
from verglas.steps.step import RunOptions, run_step

QUIET = RunOptions(quiet=True)


@pytest.fixture(scope="module")
def simulation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "simulate"
    params = SimulateParams(
        image_size=(64, 64), pixel_size=20.0, thickness=500.0, tilt_step=30.0, copies=6, vesicles=0, gold=2
    )
    assert not run_step(SIMULATE_STEP, params, folder, options=QUIET).failed
    return folder


def compare(simulation, folder, values, series="truth/tilt_series", voxel=20.0):
    volume = folder / "tomograms/TS_01.mrc"
    write_mrc(volume, values, voxel_size_angstrom=voxel)
    record = read_tilt_series(simulation / f"{series}.star")["TS_01"]
    entry = (record, simulation / series / "TS_01.star")
    write_tomograms(folder / "tomograms.star", [Tomogram("TS_01", volume, values.shape, voxel)], [entry])
    params = CompareParams(tomograms=folder / "tomograms.star", simulation=simulation)
    report = run_step(COMPARE_STEP, params, folder / "compare", options=QUIET)
    return report, json.loads((folder / "compare/items/TS_01.json").read_text())["values"]


def test_the_truth_itself_agrees_to_nyquist(simulation, tmp_path):
    truth = read_mrc(simulation / "truth/volumes/TS_01.mrc")
    report, values = compare(simulation, tmp_path, 5.0 - 3.0 * truth)
    assert values["resolution_angstrom"] == pytest.approx(40.0)
    assert values["largest_correlation"] == pytest.approx(1.0)
    assert values["true_geometry"]
    assert "judges the reconstruction alone" in report.summary.warnings[0]
    for figure in report.summary.figures:
        assert (tmp_path / "compare" / figure.path).read_bytes().startswith(b"\x89PNG")


def test_matter_must_be_dark_and_in_place(simulation, tmp_path):
    truth = read_mrc(simulation / "truth/volumes/TS_01.mrc")
    _, bright = compare(simulation, tmp_path / "bright", truth)
    assert bright["resolution_angstrom"] is None
    assert bright["largest_correlation"] == pytest.approx(-1.0)
    _, shifted = compare(simulation, tmp_path / "shifted", -np.roll(truth, 3, axis=2))
    assert shifted["resolution_angstrom"] > 100


def test_other_geometry_is_not_called_the_truth(simulation, tmp_path):
    truth = read_mrc(simulation / "truth/volumes/TS_01.mrc")
    report, values = compare(simulation, tmp_path, -truth, "tilt_series")
    assert not values["true_geometry"]
    assert report.summary.warnings == []


def test_volumes_of_another_grid_are_refused(simulation, tmp_path):
    truth = read_mrc(simulation / "truth/volumes/TS_01.mrc")
    small, _ = compare(simulation, tmp_path / "small", -truth[:-2])
    assert "has (28, 64, 64) voxels of 20 Å" in small.failed["TS_01"]
    fine, _ = compare(simulation, tmp_path / "fine", -truth, voxel=10.0)
    assert "expected those of" in fine.failed["TS_01"]


def test_a_tomogram_without_truth_is_refused(simulation, tmp_path):
    record = read_tilt_series(simulation / "truth/tilt_series.star")["TS_01"]
    other = TiltSeries("other", record.optics, (64, 64), record.images, record.nominal_tilt_deg)
    volume = Tomogram("other", simulation / "truth/volumes/TS_01.mrc", (30, 64, 64), 20.0)
    write_one_tilt_series(tmp_path / "other.star", other)
    write_tomograms(tmp_path / "tomograms.star", [volume], [(other, tmp_path / "other.star")])
    params = CompareParams(tomograms=tmp_path / "tomograms.star", simulation=simulation)
    with pytest.raises(UserError, match=r"tomogram 'other' has no truth in .* expected one of TS_01"):
        run_step(COMPARE_STEP, params, tmp_path / "compare", options=QUIET)


@pytest.mark.parametrize("lean", [0.0, 8.0])
def test_the_measured_region_holds_what_back_projection_fills(lean):
    # Views to one side only, so that a sign turned round would show.
    tilts = np.arange(5.0, 41.0, 2.5)
    series = TiltSeries(
        "noise",
        Optics(10.0),
        (48, 48),
        tuple(ImageReference("none.mrc", i) for i in range(len(tilts))),
        tilts,
        x_tilt_deg=np.full(len(tilts), lean),
    )
    noise = np.random.default_rng(0).normal(size=(len(tilts), 48, 48))
    volume = reconstruct(series, noise, thickness=480.0, dose_weight=False, device="cpu").values
    window = np.hanning(48)
    volume = volume * window[:, None, None] * window[:, None] * window
    power = np.abs(np.fft.rfftn(volume)) ** 2
    region = measured_region((48, 48, 48), series).numpy().astype(bool)
    mirrored = np.roll(region[::-1], 1, axis=0)
    # Low frequencies of a window of 48 voxels are wider than the wedge.
    kz, ky, kx = np.meshgrid(np.fft.fftfreq(48), np.fft.fftfreq(48), np.fft.rfftfreq(48), indexing="ij")
    high = (np.sqrt(kx**2 + ky**2 + kz**2) > 0.15) & (np.abs(kx) > 0.1)
    assert power[region & high].sum() > 0.85 * power[high].sum()
    assert power[mirrored & high].sum() < 0.3 * power[high].sum()
    assert 0.05 < region.mean() < 0.4


def test_resolution_counts_from_the_peak():
    frequency = torch.arange(6) / 100.0
    assert find_resolution(frequency, torch.tensor([1.0, 0.2, 0.9, 0.6, 0.4, 0.3])) == pytest.approx(
        100 / 3.5
    )
    assert find_resolution(frequency, torch.tensor([1.0, 0.2, 0.4, 0.3, 0.2, 0.1])) is None
    assert find_resolution(frequency, torch.tensor([1.0, 0.9, 0.9, 0.9, 0.9, 0.8])) == pytest.approx(20.0)
