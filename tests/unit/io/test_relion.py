"""RELION's tilt series and tomograms as records and back."""

import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from verglas.errors import FileFormatError, MissingFileError, UserError
from verglas.io.relion_tilt_series import (
    find_file,
    local_field_path,
    read_one_tilt_series,
    read_tilt_series,
    write_one_tilt_series,
    write_tilt_series,
    write_tilt_series_index,
)
from verglas.io.relion_tomograms import read_tomograms, write_tomograms
from verglas.io.star import get_table, read_star, read_table, write_star
from verglas.model import ImageReference, LocalField, Optics, TiltSeries, Tomogram
from verglas.ops.geometry import series_matrices

COUNT = 5


@pytest.fixture
def series() -> TiltSeries:
    rng = np.random.default_rng(0)
    extra = pd.DataFrame(
        {"rlnCtfMaxResolution": rng.normal(size=COUNT), "rlnMicrographNameEven": ["0012"] * COUNT}
    )
    extra.attrs = {
        "rlnOpticsGroupName": "krios",
        "rlnMicrographOriginalPixelSize": 0.675,
        "rlnSomething": 1 / 3,
    }
    return TiltSeries(
        name="TS_01",
        optics=Optics(1.35, 200.0, 2.62, 0.07),
        image_shape=(62, 65),
        images=tuple(ImageReference(Path("no such/stack 1.mrc"), i) for i in range(COUNT)),
        nominal_tilt_deg=rng.normal(size=COUNT),
        x_tilt_deg=rng.normal(size=COUNT),
        y_tilt_deg=rng.normal(size=COUNT),
        z_rot_deg=rng.normal(size=COUNT),
        x_shift_angstrom=rng.normal(size=COUNT),
        y_shift_angstrom=rng.normal(size=COUNT),
        magnification=np.eye(2) + rng.normal(size=(COUNT, 2, 2)) * 0.01,
        pre_exposure_e_per_a2=np.arange(COUNT) * 3.1,
        exposure_e_per_a2=np.array([3.1, np.nan, 3.1, 3.1, 3.0]),
        defocus_u_angstrom=rng.normal(size=COUNT) * 1e4,
        defocus_v_angstrom=rng.normal(size=COUNT) * 1e4,
        defocus_angle_deg=rng.normal(size=COUNT),
        phase_shift_deg=rng.normal(size=COUNT),
        selected=np.array([True, False, True, True, False]),
        hand=-1,
        volume_shape=(300, 400, 500),
        extra=extra,
    )


def assert_same_series(left: TiltSeries, right: TiltSeries) -> None:
    for item in fields(TiltSeries):
        ours, theirs = getattr(left, item.name), getattr(right, item.name)
        if isinstance(theirs, np.ndarray):
            np.testing.assert_array_equal(ours, theirs, err_msg=item.name)
        elif isinstance(theirs, pd.DataFrame):
            pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
            assert ours.attrs == theirs.attrs
        else:
            assert ours == theirs, item.name


def minimal(name: str = "TS_02") -> TiltSeries:
    images = tuple(ImageReference(Path(f"frames/{name}_{i}.mrc")) for i in range(3))
    return TiltSeries(name, Optics(2.0), (10, 12), images, np.array([-3.0, 0.0, 3.0]))


def test_every_field_round_trips(tmp_path: Path, series: TiltSeries) -> None:
    index = write_tilt_series(tmp_path / "out", [series, minimal()])
    assert index == tmp_path / "out" / "tilt_series.star"
    back = read_tilt_series(index)
    assert list(back) == ["TS_01", "TS_02"]
    assert_same_series(back["TS_01"], series)
    plain = back["TS_02"]
    np.testing.assert_array_equal(plain.y_tilt_deg, [-3.0, 0.0, 3.0])
    assert np.isnan(plain.defocus_u_angstrom).all()
    assert plain.images == minimal().images
    assert plain.selected.all()
    assert plain.volume_shape is None


def test_a_local_field_lies_beside_the_series(tmp_path: Path, series: TiltSeries) -> None:
    shifts = np.random.default_rng(0).normal(0, 9, (len(series), 3, 4, 2)).round(3)
    field = LocalField((-900.0, -800.0), (900.0, 700.0), shifts)
    index = write_tilt_series(tmp_path, [replace(series, local=field)])
    read = read_tilt_series(index)[series.name]
    assert read.local is not None
    assert (read.local.low_angstrom, read.local.high_angstrom) == (field.low_angstrom, field.high_angstrom)
    assert np.array_equal(read.local.shifts_angstrom, shifts)
    part = read.take([2, 0])
    assert part.local is not None
    assert np.array_equal(part.local.shifts_angstrom, shifts[[2, 0]])
    with pytest.raises(UserError, match="`local`"):
        replace(series, local=part.local)
    path = local_field_path(tmp_path / f"tilt_series/{series.name}.star")
    path.write_text(path.read_text().replace("900.0", "NaN"))
    with pytest.raises(FileFormatError, match="local field"):
        read_tilt_series(index)
    path.unlink()
    with pytest.raises(MissingFileError, match="local field"):
        read_tilt_series(index)


def test_labels_of_the_index_survive_pickling_and_taking(series: TiltSeries) -> None:
    assert_same_series(pickle.loads(pickle.dumps(series)), series)
    assert series.take([2, 0]).extra.attrs == series.extra.attrs


def test_one_file_stands_alone_and_the_index_is_written_later(tmp_path: Path, series: TiltSeries) -> None:
    path = tmp_path / "TS_01.star"
    write_one_tilt_series(path, series)
    alone = read_one_tilt_series(path)
    del series.extra.attrs["rlnSomething"]  # the index alone holds labels that verglas does not know
    assert_same_series(alone, series)
    write_tilt_series_index(tmp_path / "tilt_series.star", [(alone, path)])
    assert_same_series(read_tilt_series(tmp_path / "tilt_series.star")["TS_01"], series)


def test_index_wins_over_repeated_labels(tmp_path: Path, series: TiltSeries) -> None:
    write_one_tilt_series(tmp_path / "a.star", series)
    write_tilt_series_index(tmp_path / "i.star", [(replace(series, hand=1), tmp_path / "a.star")])
    assert read_tilt_series(tmp_path / "i.star")["TS_01"].hand == 1


def test_real_series(shared_data: Path) -> None:
    path = shared_data / "formats" / "relion5" / "tilt_series.star"
    every = read_tilt_series(path)
    assert list(every) == [f"220728_TS_{i}" for i in ("01", "03", "43", "45", "54")]
    one = every["220728_TS_01"]
    assert len(one) == 41
    assert one.optics == Optics(1.35, 300.0, 2.7, 0.1)
    assert one.image_shape == (3838, 3710)  # a K2; told by angles and matrices together
    assert one.volume_shape == (3000, 4000, 4000)
    assert one.hand == 1
    assert one.y_tilt_deg[:2].tolist() == [9.02, 12.02]
    assert one.pre_exposure_e_per_a2[:3].tolist() == [0.0, 3.0, 6.0]
    assert one.images[0] == ImageReference(Path("MotionCorr/job002/frames/TS_01_000_0_0.mrc"))
    assert "rlnAccumMotionTotal" in one.extra
    assert "rlnTomoProjX" not in one.extra
    assert one.extra.attrs["rlnEtomoDirectiveFile"].endswith("220728_TS_01.edf")


def test_real_series_projects_as_its_matrices(shared_data: Path) -> None:
    path = shared_data / "formats" / "relion5" / "tilt_series" / "220728_TS_01.star"
    one = read_tilt_series(path.parents[1] / "tilt_series.star")["220728_TS_01"]
    table = read_table(path)
    theirs = np.array(
        [[json.loads(text) for text in table[f"rlnTomoProj{axis}"]] for axis in "XYZ"]
    ).transpose(1, 0, 2)
    ours = series_matrices(one.geometry).numpy()
    pixels = np.random.default_rng(0).uniform(0, 3000, size=(10, 3))
    points = (pixels - np.array(one.volume_shape[::-1]) / 2) * 1.35
    for our, their in zip(ours, theirs, strict=True):
        image = points @ our[:2, :3].T + our[:2, 3]
        expected = pixels @ their[:2, :3].T + their[:2, 3]
        np.testing.assert_allclose(image / 1.35 + (3710 // 2, 3838 // 2), expected, atol=2e-3)


def test_real_series_round_trip(shared_data: Path, tmp_path: Path) -> None:
    every = read_tilt_series(shared_data / "formats" / "relion5" / "tilt_series.star")
    back = read_tilt_series(write_tilt_series(tmp_path, every.values()))
    for name, one in every.items():
        one.extra.attrs.setdefault("rlnOpticsGroupName", "opticsGroup1")  # RELION needs one
        assert_same_series(back[name], one)


def test_relion_4_matrices_become_the_angles_of_the_same_file(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "formats" / "relion5"
    truth = read_tilt_series(folder / "tilt_series.star")["220728_TS_43"]
    table = read_table(folder / "tilt_series" / "220728_TS_43.star")
    keep = [c for c in table if c.startswith(("rlnTomoProj", "rlnDefocus", "rlnMicrographPre"))]
    globals_ = {
        "rlnTomoName": ["220728_TS_43"],
        "rlnTomoTiltSeriesName": ["stacks/43.mrc:mrc"],
        "rlnTomoFrameCount": [len(table)],
        "rlnTomoSizeX": [4000],
        "rlnTomoSizeY": [4000],
        "rlnTomoSizeZ": [3000],
        "rlnTomoHand": [-1.0],
        "rlnOpticsGroupName": ["first"],
        "rlnTomoTiltSeriesPixelSize": [1.35],
        "rlnVoltage": [300.0],
        "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.07],
        "rlnTomoImportFractionalDose": [3.0],
    }
    path = tmp_path / "tomograms.star"
    write_star(path, {"global": pd.DataFrame(globals_), "220728_TS_43": table[keep]})
    one = read_tilt_series(path, image_shape_of=lambda image: (3838, 3710))["220728_TS_43"]
    for name in ("x_tilt_deg", "y_tilt_deg", "z_rot_deg"):
        np.testing.assert_allclose(getattr(one, name), getattr(truth, name), atol=1e-4)
    for name in ("x_shift_angstrom", "y_shift_angstrom"):
        np.testing.assert_allclose(getattr(one, name), getattr(truth, name), atol=2e-3)
    np.testing.assert_array_equal(one.defocus_u_angstrom, truth.defocus_u_angstrom)
    np.testing.assert_array_equal(one.nominal_tilt_deg, one.y_tilt_deg)
    assert (one.exposure_e_per_a2 == 3.0).all()
    assert one.images[3] == ImageReference(Path("stacks/43.mrc"), 3)
    assert one.hand == -1
    assert one.extra.attrs["rlnOpticsGroupName"] == "first"
    assert "rlnTomoFrameCount" not in one.extra.attrs

    skewed = table[keep].assign(rlnTomoProjX="[1,0.5,0,0]")
    write_star(path, {"global": pd.DataFrame(globals_), "220728_TS_43": skewed})
    with pytest.raises(
        FileFormatError, match=r"projection matrix 1 of tilt series '220728_TS_43' .* not a rotation"
    ):
        read_tilt_series(path, image_shape_of=lambda image: (3838, 3710))
    write_star(path, {"global": pd.DataFrame(globals_), "220728_TS_43": skewed.assign(rlnTomoProjX="[1,a]")})
    with pytest.raises(FileFormatError, match="projection matrices that are not rows"):
        read_tilt_series(path, image_shape_of=lambda image: (3838, 3710))


def write_foreign(folder: Path, image: str, **more: Any) -> Path:
    index = {
        "rlnTomoName": ["a"],
        "rlnTomoTiltSeriesStarFile": ["sub/a.star"],
        "rlnTomoTiltSeriesPixelSize": [2.0],
    }
    views = {
        "rlnMicrographName": [image],
        "rlnTomoNominalStageTiltAngle": [0.0],
        "rlnMicrographPreExposure": [0.0],
    }
    write_star(folder / "tilt_series.star", {"global": pd.DataFrame(index)})
    write_star(folder / "sub" / "a.star", {"a": pd.DataFrame(views | more)})
    return folder / "tilt_series.star"


@pytest.mark.parametrize("order", ["<", ">"])
def test_image_shape_comes_from_the_header_of_the_first_image(tmp_path: Path, order: str) -> None:
    (tmp_path / "b.mrc").write_bytes(struct.pack(f"{order}4i", 65, 62, 1, 2) + bytes(1008))
    path = write_foreign(tmp_path, "000001@b.mrc")
    one = read_tilt_series(path)["a"]
    assert one.image_shape == (62, 65)
    assert one.images == (ImageReference(tmp_path / "b.mrc", 0),)
    assert read_tilt_series(path, image_shape_of=lambda image: (3, 4))["a"].image_shape == (3, 4)
    (tmp_path / "b.mrc").write_bytes(b"short")
    with pytest.raises(UserError, match=r"b\.mrc' of tilt series 'a' is no MRC file"):
        read_tilt_series(path)


def test_paths_are_found_and_written_from_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, series: TiltSeries
) -> None:
    project = tmp_path / "project"
    (project / "frames").mkdir(parents=True)
    (project / "frames" / "x.mrc").touch()
    star = project / "job" / "sub" / "tilt_series.star"
    monkeypatch.chdir(tmp_path)
    assert find_file("frames/x.mrc", star) == project / "frames" / "x.mrc"
    assert find_file("frames/y.mrc", star) == Path("frames/y.mrc")
    assert find_file("/nowhere/x.mrc", star) == Path("/nowhere/x.mrc")
    assert find_file("elsewhere/frames/x.mrc", project / "a.star") == project / "frames" / "x.mrc"
    monkeypatch.chdir(project)
    inside = replace(
        series, images=tuple(ImageReference(project / "frames" / "x.mrc", i) for i in range(COUNT))
    )
    write_tilt_series(project / "out", [inside])
    assert get_table(read_star("out/tilt_series.star"), "global", "")[
        "rlnTomoTiltSeriesStarFile"
    ].tolist() == ["out/tilt_series/TS_01.star"]
    assert read_table("out/tilt_series/TS_01.star")["rlnMicrographName"][1] == "000002@frames/x.mrc"
    assert read_tilt_series("out/tilt_series.star")["TS_01"].images == inside.images


def test_bad_tilt_series(tmp_path: Path, series: TiltSeries) -> None:
    with pytest.raises(MissingFileError):
        read_tilt_series(tmp_path / "no.star")
    with pytest.raises(UserError, match="'TS_01' comes twice"):
        write_tilt_series(tmp_path, [series, series])
    with pytest.raises(UserError, match="tilt series name"):
        write_one_tilt_series(tmp_path / "a.star", replace(series, name="../evil"))
    path = write_foreign(tmp_path, "b.mrc", vglImageSizeX=[4], vglImageSizeY=[3])
    assert read_tilt_series(path)["a"].image_shape == (3, 4)
    blocks = {"global": get_table(read_star(path), "global", path)}
    write_star(path, {"global": blocks["global"].assign(rlnTomoName="../evil")})
    with pytest.raises(UserError, match="rlnTomoName"):
        read_tilt_series(path)
    write_star(path, {"global": pd.concat([blocks["global"]] * 2)})
    with pytest.raises(FileFormatError, match="has the tilt series 'a' twice"):
        read_tilt_series(path)
    write_star(path, {"global": blocks["global"].drop(columns="rlnTomoTiltSeriesPixelSize")})
    with pytest.raises(FileFormatError, match="lacks rlnTomoTiltSeriesPixelSize"):
        read_tilt_series(path)
    write_star(path, {"global": blocks["global"].assign(rlnTomoTiltSeriesStarFile="gone.star")})
    with pytest.raises(MissingFileError, match="STAR file of tilt series 'a'"):
        read_tilt_series(path)
    write_foreign(tmp_path, "b.mrc", vglImageSizeX=[4], vglImageSizeY=[3], rlnDefocusU=["deep"])
    with pytest.raises(FileFormatError, match=r"rlnDefocusU in block 'a' .* must hold numbers; got 'deep'"):
        read_tilt_series(path)


@pytest.mark.relion
def test_relion_reads_the_series(relion: Callable[..., str], tmp_path: Path, series: TiltSeries) -> None:
    # RELION 3.1 knows no quotes, so that blanks in a path shift its columns.
    write_tilt_series(tmp_path, [series.map_images(lambda image: replace(image, path=Path("a.mrc")))])
    printed = relion(
        "relion_star_printtable", "tilt_series.star", "data_global", "rlnVoltage", "rlnAmplitudeContrast"
    )
    assert [float(word) for word in printed.split()] == [200.0, 0.07]
    printed = relion("relion_star_printtable", "tilt_series/TS_01.star", "data_TS_01", "rlnDefocusU")
    np.testing.assert_allclose(
        [float(word) for word in printed.split()], series.defocus_u_angstrom, rtol=1e-6
    )


def test_tomograms_round_trip(tmp_path: Path, series: TiltSeries) -> None:
    index = write_tilt_series(tmp_path, [series, minimal()])
    entries = [(one, index.parent / "tilt_series" / f"{one.name}.star") for one in (series, minimal())]
    whole = Tomogram("TS_01", Path("rec/TS_01.mrc"), (40, 53, 67), 10.0)
    halves = (Path("rec/a.mrc"), Path("rec/b.mrc"))
    region = Tomogram("TS_02", Path("rec/r.mrc"), (9, 8, 7), 4.0, (100.0, -20.0, 1 / 3), halves)
    path = tmp_path / "tomograms.star"
    write_tomograms(path, [whole, region], entries)
    assert read_tomograms(path) == [whole, region]
    # It stays an index of the tilt series, and RELION's own labels are right.
    assert_same_series(read_tilt_series(path)["TS_01"], series)
    table = get_table(read_star(path), "global", path)
    assert table["rlnTomoTomogramBinning"].tolist() == pytest.approx([10 / 1.35, 2.0])
    assert table["rlnTomoSizeX"].tolist() == [500, 114]  # the region's end lies 100 + 14 Å from the centre
    with pytest.raises(UserError, match="tomogram 'TS_01' has no tilt series"):
        write_tomograms(path, [whole], entries[1:])


def test_real_tomograms(shared_data: Path, tmp_path: Path) -> None:
    tomograms = read_tomograms(shared_data / "formats" / "relion5" / "tilt_series.star")
    assert len(tomograms) == 5
    assert tomograms[0] == Tomogram(
        "220728_TS_01",
        Path("ReconstructTomograms/job007/tomograms/rec_220728_TS_01.mrc"),
        (375, 500, 500),
        10.8,
    )
