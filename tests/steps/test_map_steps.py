"""The steps that turn maps into maps: rescale, mask, symmetry."""

import json
import math

import numpy as np
import pytest
from pydantic import ValidationError

from verglas.errors import UserError
from verglas.io.mrc import read_mrc, read_mrc_header, write_mrc
from verglas.steps.helix import HELIX_STEP, HelixParams
from verglas.steps.mask import MASK_STEP, MaskParams
from verglas.steps.rescale import RESCALE_STEP, RescaleParams
from verglas.steps.step import RunOptions, run_step
from verglas.steps.symmetry import SYMMETRY_STEP, SymmetryParams

QUIET = RunOptions(quiet=True)


def ball(shape, voxel, radius, centre=(0.0, 0.0, 0.0)):
    """A soft ball at xyz Å from the centre."""
    z, y, x = ((np.arange(n) - n // 2) * voxel - c for n, c in zip(shape, centre[::-1], strict=True))
    distance = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    return (1 / (1 + np.exp((distance - radius) / voxel))).astype(np.float32)


def values_of(out, name):
    return json.loads((out / f"items/{name}.json").read_text())["values"]


def test_maps_are_rescaled(tmp_path):
    write_mrc(tmp_path / "a.mrc", ball((40, 40, 40), 3.0, 30.0), voxel_size_angstrom=3.0)
    params = RescaleParams(maps=(tmp_path / "a.mrc",), pixel_size=4.0, box=36)
    report = run_step(RESCALE_STEP, params, tmp_path / "out", options=QUIET)
    assert not report.failed
    result = read_mrc(tmp_path / "out/maps/a.mrc")
    assert result.shape == (36, 36, 36)
    assert read_mrc_header(tmp_path / "out/maps/a.mrc").pixel_size_angstrom == pytest.approx(4.0)
    assert result.sum() * 4.0**3 == pytest.approx(ball((40, 40, 40), 3.0, 30.0).sum() * 3.0**3, rel=0.01)
    assert (tmp_path / "out/figures/a.png").read_bytes().startswith(b"\x89PNG")
    params = RescaleParams(maps=(tmp_path / "none.mrc",), pixel_size=4.0)
    with pytest.raises(UserError, match="does not exist"):
        run_step(RESCALE_STEP, params, tmp_path / "b", options=QUIET)


@pytest.mark.parametrize(
    ("shape", "volume"),
    [
        ("sphere", 4 / 3 * math.pi * 20 * 30 * 40),
        ("cylinder", math.pi * 20**2 * 80),
        ("box", 40 * 60 * 80),
    ],
)
def test_shapes_have_their_size_and_place(tmp_path, shape, volume):
    params = MaskParams(
        shape=shape,
        box=(40, 44, 52),
        pixel_size=2.0,
        radius=(20.0, 30.0, 40.0),
        centre=(4.0, -6.0, 2.0),
        edge=0.0,
    )
    assert not run_step(MASK_STEP, params, tmp_path, options=QUIET).failed
    mask = read_mrc(tmp_path / f"masks/{shape}.mrc")
    assert mask.shape == (52, 44, 40)
    assert mask.sum() * 8 == pytest.approx(volume, rel=0.12)
    middle = [np.average(np.arange(n) - n // 2, weights=mask.sum(axis=tuple({0, 1, 2} - {i}))) * 2
              for i, n in enumerate(mask.shape)]  # fmt: skip
    np.testing.assert_allclose(middle, (2.0, -6.0, 4.0), atol=0.6)


def test_masks_follow_the_largest_part_of_a_density(tmp_path):
    """A hollow ball, a crumb beside it, and noise; dark as in averages of tomograms."""
    shape, voxel = (48, 48, 48), 3.0
    density = ball(shape, voxel, 36.0, (6.0, 0.0, 0.0)) - ball(shape, voxel, 14.0, (6.0, 0.0, 0.0))
    density += ball(shape, voxel, 8.0, (-55.0, 50.0, 50.0))
    noise = np.random.default_rng(0).normal(0, 0.3, shape)
    write_mrc(tmp_path / "a.mrc", (5 - density + noise).astype(np.float32), voxel_size_angstrom=voxel)
    params = MaskParams(maps=(tmp_path / "a.mrc",), dark=True, extend=0.0, edge=9.0)
    report = run_step(MASK_STEP, params, tmp_path / "out", options=QUIET)
    assert not report.failed
    mask = read_mrc(tmp_path / "out/masks/a.mrc")
    assert mask[24, 24, 26] == 1
    assert mask[24 + 16, 24 + 16, 24 - 18] == 0
    assert (mask == 1).sum() * voxel**3 == pytest.approx(4 / 3 * math.pi * 36**3, rel=0.2)
    edge = mask[24, 24, 26 + 12 :]
    assert (np.diff(edge) <= 1e-6).all()
    assert ((edge > 0.05) & (edge < 0.95)).sum() >= 2


def test_a_real_map_is_masked_to_its_mass(shared_data, tmp_path):
    """Haemoglobin has 64 kDa, which are 78 nm³ at 1.21 Å³ a dalton."""
    params = MaskParams(maps=(shared_data / "maps/emd_3488.mrc",), extend=0.0, edge=0.0)
    assert not run_step(MASK_STEP, params, tmp_path, options=QUIET).failed
    assert values_of(tmp_path, "emd_3488")["volume_a3"] == pytest.approx(78_000, rel=0.1)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({}, "expected one of the two"),
        ({"shape": "sphere", "box": (8, 8, 8), "pixel_size": 1.0}, "`shape` sphere needs `radius`"),
        ({"shape": "sphere", "box": (8, 0, 8), "pixel_size": 1.0, "radius": (1, 1, 1)}, "2 to 4096 voxels"),
    ],
)
def test_masks_of_nothing_are_refused(parameters, sentence):
    with pytest.raises(ValidationError, match=sentence):
        MaskParams(**parameters)


def test_an_empty_mask_is_told(tmp_path):
    far = MaskParams(
        shape="box", box=(8, 8, 8), pixel_size=1.0, radius=(2, 2, 2), centre=(90.0, 0, 0), edge=0.0
    )
    assert "zero everywhere" in run_step(MASK_STEP, far, tmp_path / "a", options=QUIET).failed["box"]
    write_mrc(tmp_path / "flat.mrc", np.ones((8, 8, 8), np.float32), voxel_size_angstrom=1.0)
    write_mrc(tmp_path / "ball.mrc", ball((16, 16, 16), 1.0, 5.0), voxel_size_angstrom=1.0)
    flat = MaskParams(maps=(tmp_path / "flat.mrc",))
    assert "1 everywhere" in run_step(MASK_STEP, flat, tmp_path / "b", options=QUIET).failed["flat"]
    high = MaskParams(maps=(tmp_path / "ball.mrc",), threshold=9.0)
    assert "would be empty" in run_step(MASK_STEP, high, tmp_path / "c", options=QUIET).failed["ball"]


def test_maps_are_symmetrised(tmp_path):
    volume = sum(ball((32, 32, 32), 2.0, 6.0, place) for place in ((16.0, 0, 4.0), (0, 9.0, -8.0)))
    write_mrc(tmp_path / "a.mrc", volume, voxel_size_angstrom=2.0)
    params = SymmetryParams(maps=(tmp_path / "a.mrc",), group="C4")
    assert not run_step(SYMMETRY_STEP, params, tmp_path / "out", options=QUIET).failed
    result = read_mrc(tmp_path / "out/maps/a.mrc")
    # Four copies of each ball at a quarter of its density; the corner voxels have no image.
    for place in ((16, 0, 4), (0, 16, 4), (-16, 0, 4), (0, -16, 4), (9, 0, -8)):
        x, y, z = (round(c / 2) + 16 for c in place)
        assert result[z, y, x] == pytest.approx(0.25 * volume.max(), rel=0.2)
    with pytest.raises(UserError, match="`group` must be"):
        run_step(SYMMETRY_STEP, params.model_copy(update={"group": "X3"}), tmp_path / "b", options=QUIET)


def test_the_axis_of_a_ring_is_found(tmp_path):
    turn = np.deg2rad(35.0)
    places = []
    for i in range(6):
        x, y = 24 * np.cos(i * np.pi / 3), 24 * np.sin(i * np.pi / 3)
        places.append((x * np.cos(turn) + 3.0, y, -x * np.sin(turn)))
    volume = sum(ball((36, 36, 36), 2.0, 5.0, place) for place in places)
    write_mrc(tmp_path / "ring.mrc", volume, voxel_size_angstrom=2.0)
    params = SymmetryParams(maps=(tmp_path / "ring.mrc",), group="c6", find_axis=True)
    report = run_step(SYMMETRY_STEP, params, tmp_path / "out", options=QUIET)
    assert not report.failed
    values = values_of(tmp_path / "out", "ring")
    axis = np.array(values["axis"])
    assert abs(axis @ [np.sin(turn), 0, np.cos(turn)]) > np.cos(np.deg2rad(1.5))
    assert values["correlation"] > 0.9
    aligned = read_mrc(tmp_path / "out/maps/ring_aligned.mrc")
    # The middle of the ring lies on z, as high as it lay along the axis.
    weights = (aligned > 0.5).astype(float)
    middle = [np.average(place - 18, weights=weights) for place in np.indices(aligned.shape)]
    np.testing.assert_allclose(np.abs(middle), (1.5 * np.sin(turn), 0, 0), atol=0.15)


def test_helix_measures_a_real_microtubule(shared_data, tmp_path):
    """13 strands and a repeat of about 41 Å, as its README says; the wedge favours 11 and 15."""
    params = HelixParams(
        maps=(shared_data / "microtubule/13pf_MT.tif",), pixel_size=10.52, bright=True, repeat=(25.0, 60.0)
    )
    report = run_step(HELIX_STEP, params, tmp_path / "out", options=QUIET)
    assert not report.failed, report.failed
    values = json.loads((tmp_path / "out/items/13pf_MT.json").read_text())["values"]
    assert values["strands"] == 13
    # Whose rows come first in a TIFF is a matter of the program, and with it the hand.
    assert abs(values["starts"]) == 3
    assert 40.0 < values["repeat_angstrom"] < 42.0
    assert 100 < values["radius_angstrom"] < 120
    assert (tmp_path / "out/figures/13pf_MT.png").stat().st_size > 10_000


def test_helix_wants_a_voxel_size_that_shows_the_repeat(shared_data, tmp_path):
    tiff = shared_data / "microtubule/13pf_MT.tif"
    for pixel, words in ((None, "tells no voxel size"), (20.0, "needs voxels of at most 12.5 Å")):
        params = HelixParams(maps=(tiff,), pixel_size=pixel)
        report = run_step(HELIX_STEP, params, tmp_path / str(pixel), options=QUIET)
        assert words in report.failed["13pf_MT"]
    with pytest.raises(UserError, match="two rising lengths"):
        run_step(HELIX_STEP, HelixParams(maps=(tiff,), repeat=(60.0, 25.0)), tmp_path / "bad", options=QUIET)
