"""RELION's particles of several versions as the record and back."""

import pickle
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.transform import Rotation

from verglas.errors import FileFormatError, UserError
from verglas.io.relion_particles import read_particles, write_particles
from verglas.io.star import get_table, read_star, write_star
from verglas.model import ImageReference, Optics, Particles, TiltSeries, Tomogram


def relion_matrix(rot: float, tilt: float, psi: float) -> np.ndarray:
    """RELION's Euler matrix, which takes the reference frame to the specimen frame."""
    return Rotation.from_euler("ZYZ", [rot, tilt, psi], degrees=True).as_matrix().T


def minimal(name: str = "TS_02", optics: Optics | None = None) -> TiltSeries:
    return TiltSeries(name, optics or Optics(2.0), (10, 12), (ImageReference(Path("a.mrc")),), np.zeros(1))


@pytest.fixture
def series() -> TiltSeries:
    one = minimal("TS_01", Optics(1.35, 200.0, 2.62, 0.07))
    extra = pd.DataFrame(index=range(1))
    extra.attrs = {"rlnOpticsGroupName": "krios"}
    return replace(one, volume_shape=(300, 400, 500), extra=extra)


def particles(count: int = 30) -> Particles:
    rng = np.random.default_rng(5)
    return Particles(
        tomogram_names=np.array(["TS_01", "TS_02", "0003"])[rng.integers(0, 3, count)],
        positions_angstrom=rng.normal(size=(count, 3)) * 1000,
        angles_deg=rng.uniform(0, 180, size=(count, 3)),
        half_set=rng.integers(0, 3, count),
        score=np.where(rng.uniform(size=count) < 0.5, np.nan, rng.normal(size=count)),
        extra=pd.DataFrame(
            {"rlnTomoParticleName": [f"TS/{i}" for i in range(count)], "vglThing": rng.normal(size=count)}
        ),
    )


def assert_same_particles(left: Particles, right: Particles) -> None:
    for item in fields(Particles):
        ours, theirs = getattr(left, item.name), getattr(right, item.name)
        if isinstance(theirs, pd.DataFrame):
            pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=item.name)


def test_particles_round_trip(tmp_path: Path, series: TiltSeries) -> None:
    path = tmp_path / "particles.star"
    write_particles(path, particles())
    assert list(read_star(path)) == ["particles"]
    assert_same_particles(read_particles(path), particles())

    other = minimal("0003", series.optics)
    frames = {"TS_01": series, "TS_02": minimal(), "0003": other}
    write_particles(path, particles(), frames)
    optics = get_table(read_star(path), "optics", path)
    # 0003 has the optics of TS_01, but not the name of its group.
    assert sorted(optics["rlnTomoTiltSeriesPixelSize"]) == [1.35, 1.35, 2.0]
    assert optics["rlnOpticsGroupName"].is_unique
    back = read_particles(path)
    np.testing.assert_array_equal(back.positions_angstrom, particles().positions_angstrom)
    sizes = dict(zip(optics["rlnOpticsGroup"], optics["rlnTomoTiltSeriesPixelSize"], strict=True))
    expected = [frames[name].pixel_size_angstrom for name in back.tomogram_names]
    assert [sizes[group] for group in back.extra["rlnOpticsGroup"]] == expected
    # What was read is written back with its optics, and the same bytes come out.
    write_particles(tmp_path / "again.star", back)
    assert_same_particles(read_particles(tmp_path / "again.star"), back)
    assert "optics" in read_star(tmp_path / "again.star")
    with pytest.raises(UserError, match="particles of 'TS_01' have no tilt series"):
        write_particles(path, particles(), {"TS_02": series, "0003": series})


def test_optics_survive_pickling_and_taking(tmp_path: Path, series: TiltSeries) -> None:
    write_particles(tmp_path / "p.star", particles(), dict.fromkeys(("TS_01", "TS_02", "0003"), series))
    read = read_particles(tmp_path / "p.star")
    assert pickle.loads(pickle.dumps(read.take([1]))).extra.attrs == read.extra.attrs
    assert read.extra.attrs["optics"]["rlnVoltage"] == [200.0]


def test_no_particles_round_trip(tmp_path: Path) -> None:
    write_particles(tmp_path / "p.star", particles().take(np.array([], dtype=int)))
    assert len(read_particles(tmp_path / "p.star")) == 0


@pytest.mark.parametrize("centred", [True, False])
def test_relion_4_and_5_origins_and_subtomogram_angles(
    tmp_path: Path, centred: bool, series: TiltSeries
) -> None:
    rng = np.random.default_rng(6)
    count = 12
    coordinates = rng.uniform(0, 300, size=(count, 3))
    origins = rng.normal(size=(count, 3)) * 20
    inner, outer = rng.uniform(0, 180, size=(2, count, 3))
    centre = np.array([500, 400, 300]) / 2
    columns: dict[str, Any] = {"rlnTomoName": ["TS_01"] * count, "rlnOpticsGroup": [2] * count}
    for i, axis in enumerate("XYZ"):
        if centred:
            columns[f"rlnCenteredCoordinate{axis}Angst"] = (coordinates[:, i] - centre[i]) * 1.35
        else:
            columns[f"rlnCoordinate{axis}"] = coordinates[:, i]
        columns[f"rlnOrigin{axis}Angst"] = origins[:, i]
    for i, name in enumerate(("Rot", "Tilt", "Psi")):
        columns[f"rlnAngle{name}"] = inner[:, i]
        columns[f"rlnTomoSubtomogram{name}"] = outer[:, i]
    columns["rlnImageName"] = [f"{i}.mrc" for i in range(count)]
    columns["rlnLCCmax"] = np.arange(count) / 7
    optics = pd.DataFrame({"rlnOpticsGroup": [1, 2], "rlnTomoTiltSeriesPixelSize": [9.0, 1.35]})
    path = tmp_path / "p.star"
    write_star(path, {"optics": optics, "particles": pd.DataFrame(columns)})
    read = read_particles(path, {"TS_01": series})
    for i in range(count):
        turn = relion_matrix(*outer[i])
        expected = (coordinates[i] - centre) * 1.35 - turn @ origins[i]
        np.testing.assert_allclose(read.positions_angstrom[i], expected, atol=1e-9)
        np.testing.assert_allclose(
            relion_matrix(*read.angles_deg[i]), turn @ relion_matrix(*inner[i]), atol=1e-12
        )
    np.testing.assert_array_equal(read.score, np.arange(count) / 7)
    assert read.extra.columns.tolist() == ["rlnOpticsGroup"]  # images of another place are not kept
    if not centred:
        tomogram = Tomogram("TS_01", Path("a.mrc"), (75, 100, 125), 5.4)  # the same extent, binned by four
        shape_centre = np.array([125 // 2, 100 // 2, 75 // 2]) * 5.4
        again = read_particles(path, {"TS_01": tomogram})
        np.testing.assert_allclose(
            again.positions_angstrom - read.positions_angstrom,
            np.broadcast_to(centre * 1.35 - shape_centre, (count, 3)),
            atol=1e-9,
        )
        with pytest.raises(UserError, match="particles of 'TS_01' are counted from a corner"):
            read_particles(path)


def test_particles_without_shift_keep_their_images(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"rlnTomoName": ["a"], "rlnImageName": ["1.mrc"], "rlnOriginXAngst": [0.0]}
        | {f"rlnCenteredCoordinate{axis}Angst": [1.0] for axis in "XYZ"}
    )
    write_star(tmp_path / "p.star", {"particles": table})
    read = read_particles(tmp_path / "p.star")
    assert read.extra["rlnImageName"].tolist() == ["1.mrc"]
    assert np.isnan(read.score).all()
    assert read.half_set.tolist() == [0]


def test_real_relion_31_particles(shared_data: Path) -> None:
    read = read_particles(shared_data / "particles" / "relion31.star")
    assert len(read) == 5
    # Micrograph pixels of 1.403 Å; the image's are twice as large.
    np.testing.assert_allclose(
        read.positions_angstrom[0], [3277 * 1.403 - 0.019324, 983 * 1.403 + 0.64686, 0.0], atol=1e-9
    )
    np.testing.assert_array_equal(read.angles_deg[0], [-102.30296, 82.318041, 124.706463])
    assert read.half_set.tolist() == [1] * 5
    assert read.extra.attrs["optics"]["rlnImagePixelSize"] == [2.806]
    assert read.tomogram_names[0].endswith("144102_DW.mrc")


def test_relion_30_pixels(tmp_path: Path) -> None:
    columns = {
        "rlnMicrographName": ["m.mrc"],
        "rlnCoordinateX": [100],
        "rlnCoordinateY": [50],
        "rlnOriginX": [2.0],
        "rlnMagnification": [40000],
        "rlnDetectorPixelSize": [5],
    }
    path = tmp_path / "p.star"
    write_star(path, {"": pd.DataFrame(columns)})
    np.testing.assert_allclose(read_particles(path).positions_angstrom, [[98 * 1.25, 50 * 1.25, 0]])
    np.testing.assert_allclose(
        read_particles(path, pixel_size_angstrom=2.0).positions_angstrom, [[196.0, 100.0, 0]]
    )
    del columns["rlnMagnification"]
    write_star(path, {"": pd.DataFrame(columns)})
    with pytest.raises(FileFormatError, match="does not say the pixel size"):
        read_particles(path)


def test_bad_particles(tmp_path: Path, shared_data: Path) -> None:
    with pytest.raises(FileFormatError, match="lacks rlnCoordinateX, rlnCoordinateY"):
        read_particles(shared_data / "particles" / "empiar_10076_7.star")
    path = tmp_path / "p.star"
    write_star(path, {"particles": pd.DataFrame({"rlnAngleRot": [1.0]})})
    with pytest.raises(FileFormatError, match="lacks rlnMicrographName"):
        read_particles(path)
    good = {"rlnTomoName": ["a"]} | {f"rlnCenteredCoordinate{axis}Angst": [1.0] for axis in "XYZ"}
    write_star(path, {"particles": pd.DataFrame(good | {"rlnAngleRot": ["x"]})})
    with pytest.raises(FileFormatError, match=r"rlnAngleRot .* must hold numbers; got 'x'"):
        read_particles(path)
    flat = {"rlnMicrographName": ["a"], "rlnCoordinateX": [1], "rlnCoordinateY": [1], "rlnOpticsGroup": [3]}
    optics = pd.DataFrame({"rlnOpticsGroup": [1], "rlnImagePixelSize": [1.0]})
    write_star(path, {"optics": optics, "particles": pd.DataFrame(flat)})
    with pytest.raises(FileFormatError, match="optics group without rlnImagePixelSize"):
        read_particles(path)


@pytest.mark.relion
def test_relion_reads_the_particles(relion: Callable[..., str], tmp_path: Path, series: TiltSeries) -> None:
    frames = {"TS_01": series, "TS_02": minimal(), "0003": minimal("0003")}
    write_particles(tmp_path / "p.star", particles(), frames)
    printed = relion(
        "relion_star_printtable", "p.star", "data_particles", "rlnAngleRot", "rlnAngleTilt", "rlnRandomSubset"
    )
    rows = np.array([line.split() for line in printed.splitlines() if line.strip()], dtype=float)
    np.testing.assert_allclose(rows[:, :2], particles().angles_deg[:, :2], rtol=1e-6)
    np.testing.assert_array_equal(rows[:, 2], particles().half_set)


def test_an_angle_that_was_lost_is_not_taken_for_zero(tmp_path):
    path = tmp_path / "particles.star"
    rows = {f"rlnCenteredCoordinate{axis}Angst": [1.0, 2.0] for axis in "XYZ"} | {"rlnTomoName": ["TS", "TS"]}
    for angles in ((), ("Psi",), ("Rot", "Tilt", "Psi")):
        write_star(path, {"particles": pd.DataFrame(rows | {f"rlnAngle{angle}": 3.0 for angle in angles})})
        assert len(read_particles(path)) == 2
    write_star(path, {"particles": pd.DataFrame(rows | {"rlnAngleRot": 3.0, "rlnAnglePsi": 3.0})})
    with pytest.raises(FileFormatError, match="has rlnAngleRot, rlnAnglePsi but lacks rlnAngleTilt"):
        read_particles(path)
