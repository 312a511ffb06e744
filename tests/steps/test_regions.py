"""The regions step: from limits, from files, from a tomogram, and what is refused."""

import numpy as np
import pytest
from pydantic import ValidationError

from tests.unit.reconstruction.test_material import make_tomogram
from verglas.errors import UserError
from verglas.io.emclarity import EmclarityRegion
from verglas.io.emclarity import read_regions as read_coords
from verglas.io.emclarity import write_regions as write_coords
from verglas.io.imod_model import make_imod_model, write_imod_model
from verglas.io.mrc import write_mrc
from verglas.io.regions import read_regions, write_regions
from verglas.io.relion_tilt_series import write_tilt_series
from verglas.io.relion_tomograms import write_tomograms
from verglas.model import ImageReference, Optics, Region, TiltSeries, Tomogram
from verglas.steps.regions import REGIONS_STEP, RegionsParams
from verglas.steps.step import RunOptions, run_step

QUIET = RunOptions(quiet=True)


@pytest.fixture
def tables(tmp_path):
    """Two series, one of them with a tomogram that is half empty."""
    images = (ImageReference(tmp_path / "a.mrc", 0),)
    series = [TiltSeries(name, Optics(10.0), (180, 220), images, np.zeros(1)) for name in ("TS_01", "TS_02")]
    star = write_tilt_series(tmp_path, series)
    volume = make_tomogram((20, 42), (30, 80), (10, 60), 1.0)
    write_mrc(tmp_path / "TS_01.mrc", volume, voxel_size_angstrom=20.0)
    tomogram = Tomogram("TS_01", tmp_path / "TS_01.mrc", volume.shape, 20.0, (100.0, 0.0, -50.0))
    write_tomograms(
        tmp_path / "tomograms.star", [tomogram], [(series[0], tmp_path / "tilt_series/TS_01.star")]
    )
    return star, tmp_path / "tomograms.star"


def run(star, out, **parameters):
    return run_step(REGIONS_STEP, RegionsParams(tilt_series=star, **parameters), out, options=QUIET)


def test_material_is_found_in_the_frame_of_the_specimen(tables, tmp_path):
    report = run(tables[1], tmp_path / "out")
    assert not report.failed
    (region,) = read_regions(tmp_path / "out/regions.star")
    # Columns 10 to 60 of 110, whose centre voxel 55 lies at x = 100: from -810 to 190 Å, and 100 to spare.
    for (low, high), (start, stop) in zip(
        region.limits_angstrom, ((-810, 190), (-310, 690), (-260, 180)), strict=True
    ):
        assert low == pytest.approx(start - 100, abs=160)
        assert high == pytest.approx(stop + 100, abs=160)
    assert (tmp_path / "out/figures/TS_01_regions.png").read_bytes().startswith(b"\x89PNG")
    assert report.summary.values["share"].value < 60


def test_limits_make_regions_in_all_series(tables, tmp_path):
    limits = (-100, 300, -200, 200, -150, 150, 0, 100, 0, 100, 0, 100)
    report = run(tables[0], tmp_path / "out", limits=limits)
    assert report.done == ("TS_01", "TS_02")
    regions = read_regions(tmp_path / "out/regions.star")
    assert [(one.tomogram_name, one.name) for one in regions] == [
        (name, number) for name in ("TS_01", "TS_02") for number in "12"
    ]
    assert regions[0].limits_angstrom == ((-100, 300), (-200, 200), (-150, 150))
    _, coords = read_coords(tmp_path / "out/recon/TS_01_recon.coords")
    assert (coords[0].width, coords[0].thickness, coords[0].shift_x) == (40, 30, -10)


def test_files_of_other_programs_are_taken_together(tables, tmp_path):
    limits = [(5, 9, 9), (15, 9, 9), (9, 3, 9), (9, 13, 9), (9, 9, 100), (9, 9, 200)]
    write_imod_model(tmp_path / "TS_01_bin10.mod", make_imod_model([[one] for one in limits], (22, 18, 300)))
    coords = write_coords(tmp_path, "TS_02", (EmclarityRegion(100, 20, 119, 80, 10.0, -5.0),))
    write_regions(tmp_path / "more.star", [Region("TS_02", "far", (0, 0, 0), (50, 50, 50))])
    files = (tmp_path / "TS_01_bin10.mod", coords, tmp_path / "more.star")
    report = run(tables[0], tmp_path / "out", files=files)
    assert not report.failed
    regions = {(one.tomogram_name, one.name): one for one in read_regions(tmp_path / "out/regions.star")}
    assert set(regions) == {("TS_01", "1"), ("TS_02", "1"), ("TS_02", "far")}
    # 50 to 150 of 220 pixels of 10 Å lie 10 pixels left of the middle.
    assert regions["TS_01", "1"].centre_angstrom[0] == -100
    assert regions["TS_01", "1"].size_angstrom == (1000, 1000, 10000)
    assert regions["TS_02", "1"].centre_angstrom == (-100, -210, -50)


def test_what_names_no_region_is_refused(tables, tmp_path):
    with pytest.raises(UserError, match="no tomogram of 'TS_01'"):
        run(tables[0], tmp_path / "a")
    write_coords(tmp_path, "other", (EmclarityRegion(10, 1, 10, 10),))
    with pytest.raises(UserError, match="belongs to none of the series TS_01, TS_02"):
        run(tables[0], tmp_path / "a", files=(tmp_path / "other_recon.coords",))
    with pytest.raises(UserError, match="no file of regions"):
        run(tables[0], tmp_path / "a", files=(tmp_path / "TS_01.txt",))
    with pytest.raises(ValidationError, match="six numbers for each region; got 5"):
        RegionsParams(tilt_series=tables[0], limits=(1, 2, 3, 4, 5))
    report = run(tables[0], tmp_path / "far", limits=(0, 9000, -100, 100, -100, 100))
    assert any("beyond the specimen" in warning for warning in report.summary.warnings)
