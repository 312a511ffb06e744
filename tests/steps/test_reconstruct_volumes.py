"""`reconstruct`: balls where they were put, files as promised, and bad views named."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from verglas.errors import UserError
from verglas.io.mrc import read_mrc, read_mrc_header, write_mrc
from verglas.io.relion_tilt_series import read_tilt_series, write_tilt_series
from verglas.io.relion_tomograms import read_tomograms
from verglas.model import ImageReference, Optics, TiltSeries
from verglas.steps.reconstruct import RECONSTRUCT_STEP, ReconstructParams
from verglas.steps.step import RunOptions, RunReport, run_step

QUIET = RunOptions(quiet=True)
PIXEL, SHAPE = 20.0, (40, 48)
TILTS = np.arange(-60.0, 61.0, 6.0)
BALLS = np.array([[100.0, -160.0, 120.0], [-240.0, 60.0, -80.0], [0.0, 200.0, 0.0]])
"""xyz in Å."""


def make_images(z_rot: float = 30.0, shift: tuple[float, float] = (40.0, -20.0)) -> np.ndarray:
    """Dark balls on a bright ground, their places written out by trigonometry."""
    images = np.full((len(TILTS), *SHAPE), 100.0)
    rows, columns = ((np.arange(n) - n // 2) * PIXEL for n in SHAPE)
    tilt, turn = np.deg2rad(TILTS), np.deg2rad(z_rot)
    for x, y, z in BALLS:
        across, along = x * np.cos(tilt) + z * np.sin(tilt), y
        u = across * np.cos(turn) - along * np.sin(turn) + shift[0]
        v = across * np.sin(turn) + along * np.cos(turn) + shift[1]
        squared = (rows[:, None] - v[:, None, None]) ** 2 + (columns - u[:, None, None]) ** 2
        images -= 50 * np.exp(-squared / (2 * 30.0**2))
    return images.astype(np.float32)


def write_series(folder: Path, *names: str, images: np.ndarray | None = None, **changes) -> Path:
    """Write the stacks and `tilt_series.star`, and return the latter."""
    images = make_images() if images is None else images
    series = []
    folder.mkdir(exist_ok=True)
    for name in names or ("TS_1",):
        stack = folder / f"{name}.st"
        write_mrc(stack, images, voxel_size_angstrom=PIXEL, is_stack=True)
        views = tuple(ImageReference(stack, i) for i in range(len(TILTS)))
        record = TiltSeries(
            name, Optics(PIXEL), SHAPE, views, TILTS,
            z_rot_deg=np.float64(30.0), x_shift_angstrom=np.float64(40.0), y_shift_angstrom=np.float64(-20.0),
        )  # fmt: skip
        series.append(replace(record, **changes))
    return write_tilt_series(folder, series)


def run(star: Path, out: Path, **parameters) -> RunReport:
    parameters = {"thickness": 600.0, **parameters}
    return run_step(RECONSTRUCT_STEP, ReconstructParams(tilt_series=star, **parameters), out, options=QUIET)


def digest(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for kind in ("tomograms", "figures", "tilt_series")
        for path in sorted((out / kind).iterdir())
    }


def test_balls_are_dark_and_where_they_were(tmp_path):
    report = run(write_series(tmp_path / "in"), tmp_path / "out")
    assert not report.failed
    volume = read_mrc(tmp_path / "out/tomograms/TS_1.mrc")
    assert volume.shape == (30, 40, 48)
    for ball in BALLS:
        z, y, x = (round(ball[2 - i] / PIXEL) + volume.shape[i] // 2 for i in range(3))
        near = volume[z - 3 : z + 4, y - 3 : y + 4, x - 3 : x + 4]
        assert np.unravel_index(near.argmin(), near.shape) == (3, 3, 3)
        assert volume[z, y, x] < volume.mean() - 5 * volume.std()


def test_the_volume_reaches_to_the_edges_of_the_views(tmp_path):
    images = np.random.default_rng(0).normal(size=make_images().shape).astype(np.float32)
    still = {
        "z_rot_deg": np.float64(0.0),
        "x_shift_angstrom": np.float64(0.0),
        "y_shift_angstrom": np.float64(0.0),
    }
    run(write_series(tmp_path / "in", images=images, **still), tmp_path / "out", thickness=60.0)
    volume = read_mrc(tmp_path / "out/tomograms/TS_1.mrc")
    strength = volume.std(axis=(0, 2))
    assert strength[[0, 1, -2, -1]].min() > 0.5 * np.median(strength)


def test_tables_say_what_was_made(tmp_path):
    run(write_series(tmp_path / "in"), tmp_path / "out", pixel_size=40.0, centre=(40.0, 0.0, -80.0))
    (tomogram,) = read_tomograms(tmp_path / "out/tomograms.star")
    assert tomogram.name == "TS_1"
    assert tomogram.shape == (15, 20, 24)
    assert tomogram.voxel_size_angstrom == 40.0
    assert read_mrc_header(tomogram.path).pixel_size_angstrom == pytest.approx(40.0)
    kept = read_tilt_series(tmp_path / "out/tomograms.star")["TS_1"]
    np.testing.assert_allclose(kept.y_tilt_deg, TILTS)


def test_a_region_is_cut_from_the_whole(tmp_path):
    star = write_series(tmp_path / "in")
    run(star, tmp_path / "whole")
    run(star, tmp_path / "part", thickness=200.0, size=(320.0, 240.0), centre=(100.0, -160.0, 120.0))
    whole = read_mrc(tmp_path / "whole/tomograms/TS_1.mrc")
    part = read_mrc(tmp_path / "part/tomograms/TS_1.mrc")
    assert part.shape == (10, 12, 16)
    expected = whole[15 + 6 - 5 : 15 + 6 + 5, 20 - 8 - 6 : 20 - 8 + 6, 24 + 5 - 8 : 24 + 5 + 8]
    np.testing.assert_allclose(part, expected, atol=2e-3 * whole.std())


def test_halves_average_to_the_whole(tmp_path):
    star = write_series(tmp_path / "in")
    run(star, tmp_path / "whole")
    run(star, tmp_path / "halves", halves=True)
    whole = read_mrc(tmp_path / "whole/tomograms/TS_1.mrc")
    names = ("TS_1", "TS_1_half1", "TS_1_half2")
    again, first, second = (read_mrc(tmp_path / f"halves/tomograms/{name}.mrc") for name in names)
    np.testing.assert_allclose(again, whole, atol=1e-4 * whole.std())
    np.testing.assert_allclose((first + second) / 2, whole, atol=1e-4 * whole.std())
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] < 0.95
    (tomogram,) = read_tomograms(tmp_path / "halves/tomograms.star")
    assert [path.name for path in tomogram.half_paths or ()] == ["TS_1_half1.mrc", "TS_1_half2.mrc"]


def test_half_precision_differs_by_its_rounding_only(tmp_path):
    star = write_series(tmp_path / "in")
    run(star, tmp_path / "single")
    run(star, tmp_path / "half", float16=True)
    single, half = (
        read_mrc(tmp_path / f"{name}/tomograms/TS_1.mrc", dtype=None) for name in ("single", "half")
    )
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, single.astype(np.float16))


def test_views_left_out_are_not_read(tmp_path):
    images = make_images()
    selected = np.ones(len(TILTS), bool)
    selected[[0, 9]] = False
    run(write_series(tmp_path / "whole", images=images, selected=selected), tmp_path / "a")
    images[~selected] = np.nan
    report = run(write_series(tmp_path / "broken", images=images, selected=selected), tmp_path / "b")
    assert not report.failed
    np.testing.assert_array_equal(*(read_mrc(tmp_path / f"{name}/tomograms/TS_1.mrc") for name in "ab"))


def test_done_series_are_kept_and_missing_ones_made_again(tmp_path):
    star = write_series(tmp_path / "in", "A", "B")
    run(star, tmp_path / "out")
    before = digest(tmp_path / "out")
    (tmp_path / "out/tomograms/B.mrc").unlink()
    report = run(star, tmp_path / "out")
    assert (report.done, report.skipped) == (("B",), ("A",))
    assert digest(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("change", "parameters", "sentence"),
    [
        ({"selected": np.arange(21) < 0}, {}, "0 of the 21 views of 'A' are selected; expected at least one"),
        ({"selected": np.arange(21) < 1}, {"halves": True}, "expected at least two for `halves`"),
        ({"y_tilt_deg": TILTS * 1.4}, {}, r"at -84\.0° .* too steep .* expected at most 80°"),
        ({}, {"ctf": "flip"}, r"at -60\.0° .* has no defocus; expected one for `ctf` 'flip'"),
        ({}, {"thickness": 1e10}, r"would have 48 x 40 x 500000000 voxels; expected at most"),
    ],
)
def test_what_cannot_be_reconstructed_is_said_and_the_rest_goes_on(tmp_path, change, parameters, sentence):
    bad = write_series(tmp_path / "in", "A", **change)
    report = run(bad, tmp_path / "out", **parameters)
    assert list(report.failed) == ["A"]
    with pytest.raises(UserError, match=sentence):
        raise UserError(report.failed["A"])
    assert not list((tmp_path / "out").glob("tomograms/*"))


def test_a_view_with_nan_or_of_another_size_is_named(tmp_path):
    images = make_images()
    images[4, 7, 7] = np.nan
    report = run(write_series(tmp_path / "nan", images=images), tmp_path / "a")
    assert "the view of 'TS_1' at -36.0° (section 5 of TS_1.st)" in report.failed["TS_1"]
    star = write_series(tmp_path / "small")
    write_mrc(tmp_path / "small/TS_1.st", make_images()[:, 1:], voxel_size_angstrom=PIXEL, is_stack=True)
    report = run(star, tmp_path / "b")
    assert "(y, x)" in report.failed["TS_1"]


@pytest.mark.parametrize(
    "parameters",
    [{"thickness": 0.0}, {"pixel_size": -1.0}, {"size": (100.0, 0.0)}, {"centre": (0.0, 0.0, np.nan)}],
)
def test_parameters_out_of_range_are_refused(parameters):
    with pytest.raises(ValidationError):
        ReconstructParams(tilt_series=Path("tilt_series.star"), **parameters)


def test_the_estimate_tells_what_will_be_written(tmp_path):
    star = write_series(tmp_path / "in", "A", "B")
    params = ReconstructParams(tilt_series=star, thickness=600.0, halves=True)
    estimate = RECONSTRUCT_STEP.estimate(RECONSTRUCT_STEP.list_items(params), params)
    run_step(RECONSTRUCT_STEP, params, tmp_path / "out", options=QUIET)
    written = sum(path.stat().st_size for path in (tmp_path / "out/tomograms").iterdir())
    assert estimate.disk_bytes == pytest.approx(written, rel=0.02)
