import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from verglas.errors import FileFormatError, MissingFileError, UserError
from verglas.io.star import read_table
from verglas.io.warp import (
    movie_names,
    read_tomostar,
    read_warp_xml,
    tilt_series_from_warp,
    tilt_series_to_warp,
    write_tomostar,
    write_warp_xml,
)
from verglas.model import ImageReference, Optics, TiltSeries

REAL = (
    "tilt_series_empiar10499/00254.xml",
    "tilt_series_empiar10499/imod/00254.xml",
    "formats/warp/TS_1.xml",
)


def document(
    inside: str = "", *, angles: str = "-1\n0\n1", attributes: str = "", kind: str = "TiltSeries"
) -> str:
    movies = "<MoviePath>../2/a.tif\n../2/b.tif\n../2/c.tif</MoviePath>"
    return f"<{kind} {attributes}><Angles>{angles}</Angles>{movies}{inside}</{kind}>"


def grid(name: str, values: np.ndarray) -> str:
    depth, height, width = values.shape
    nodes = "".join(
        f'<Node X="{x}" Y="{y}" Z="{z}" Value="{values[z, y, x]}" />' for z, y, x in np.ndindex(values.shape)
    )
    return f'<{name} Width="{width}" Height="{height}" Depth="{depth}">{nodes}</{name}>'


def read(folder: Path, text: str):
    (folder / "a.xml").write_text(text)
    return read_warp_xml(folder / "a.xml")


def convert(item, **changes) -> TiltSeries:
    return tilt_series_from_warp(
        item, **{"name": "a", "pixel_size_angstrom": 2.0, "image_shape": (48, 64), **changes}
    )


def assert_same(first: TiltSeries, second: TiltSeries) -> None:
    for name in (
        *(
            "x_tilt_deg",
            "y_tilt_deg",
            "z_rot_deg",
            "x_shift_angstrom",
            "y_shift_angstrom",
            "defocus_u_angstrom",
        ),
        *("defocus_v_angstrom", "defocus_angle_deg", "phase_shift_deg", "pre_exposure_e_per_a2", "selected"),
    ):
        assert np.allclose(getattr(first, name), getattr(second, name), rtol=0, atol=1e-6, equal_nan=True), (
            name
        )
    assert first.optics == second.optics
    assert first.volume_shape == second.volume_shape
    assert first.hand == second.hand


@pytest.mark.parametrize("name", REAL)
def test_real_documents_come_back_byte_for_byte(shared_data, tmp_path, name):
    write_warp_xml(tmp_path / "out.xml", read_warp_xml(shared_data / name))
    assert (tmp_path / "out.xml").read_bytes() == (shared_data / name).read_bytes()


def test_values_of_the_real_series(shared_data):
    item = read_warp_xml(shared_data / REAL[0])
    series = tilt_series_from_warp(
        item, name="00254", pixel_size_angstrom=10.0, image_shape=(630, 652), stack=Path("00254.mrc")
    )
    assert len(series) == 41
    assert series.y_tilt_deg[0] == 60.01
    assert series.nominal_tilt_deg[0] == 60.01
    assert series.x_shift_angstrom[0] == 262.72888
    assert series.pre_exposure_e_per_a2[20] == 0
    assert series.images[3] == ImageReference(Path("00254.mrc"), 3)
    # First node of GridCTF and of GridCTFDefocusDelta, in µm.
    mean, delta = item.grids["GridCTF"].values[0, 0, 0], item.grids["GridCTFDefocusDelta"].values[0, 0, 0]
    assert series.defocus_u_angstrom[0] == pytest.approx(1e4 * (mean + delta / 2))
    assert series.mean_defocus_angstrom.min() > 15000
    assert series.mean_defocus_angstrom.max() < 20000
    assert series.optics.voltage_kv == 300
    assert series.hand == -1


def test_angles_have_the_sign_of_the_stage(shared_data):
    item = read_warp_xml(shared_data / REAL[2])
    series = convert(item)
    # Names of SerialEM end in the nominal angle: 2Dvs3D_53-1_00041_-40.0_Jul31_11.05.12.tif.
    nominal = [float(name.split("_")[3]) for name in movie_names(item)]
    assert np.abs(series.nominal_tilt_deg - nominal).max() < 0.1
    assert series.x_tilt_deg[0] == 1.457031
    assert series.y_tilt_deg[0] == pytest.approx(-(40.01 - 5.920115))
    # Image warps of more than one node stay in the record.
    assert series.x_shift_angstrom[0] == 12.05431
    assert item.grids["GridMovementX"].values.shape == (41, 4, 6)
    assert item.attributes["MagnificationCorrection"].startswith("1.0062196")


def test_series_without_a_fit_has_no_defocus(shared_data):
    assert np.isnan(convert(read_warp_xml(shared_data / REAL[1])).defocus_u_angstrom).all()


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("has_base", [False, True])
def test_series_and_back(shared_data, tmp_path, name, has_base):
    item = read_warp_xml(shared_data / name)
    series = convert(item)
    write_warp_xml(tmp_path / "out.xml", tilt_series_to_warp(series, item if has_base else None))
    assert_same(convert(read_warp_xml(tmp_path / "out.xml")), series)


def test_changed_document_keeps_the_rest(shared_data):
    item = read_warp_xml(shared_data / REAL[2])
    series = convert(item)
    series = replace(series, x_shift_angstrom=series.x_shift_angstrom + 7)
    changed = tilt_series_to_warp(series, item)
    before, after = ET.fromstring(item.xml.lstrip("\ufeff")), ET.fromstring(changed.xml.lstrip("\ufeff"))
    assert [element.tag for element in before] == [element.tag for element in after]
    # Their text takes new numbers; everything beside has the same.
    rewritten = {"Angles", "AxisAngle", "AxisOffsetX", "AxisOffsetY", "Dose", "CTF", "GridCTFPhase"}
    rewritten |= {"GridCTF", "GridCTFDefocusDelta", "GridCTFDefocusAngle"}
    kept = [pair for pair in zip(before, after, strict=True) if pair[0].tag not in rewritten]
    assert len(kept) > 90
    for old, new in kept:
        assert ET.canonicalize(ET.tostring(old), strip_text=True) == ET.canonicalize(
            ET.tostring(new), strip_text=True
        )
    assert changed.numbers("AxisOffsetX") == pytest.approx(item.numbers("AxisOffsetX") + 7)
    assert changed.ctf["ZernikeCoeffsOdd"] == item.ctf["ZernikeCoeffsOdd"]


def test_image_warp_of_one_node_a_view_is_a_shift(tmp_path):
    moves = np.array([1.0, -2.0, 3.0]).reshape(3, 1, 1)
    item = read(
        tmp_path, document(grid("GridMovementX", moves) + grid("GridMovementY", np.full((1, 1, 1), 4.0)))
    )
    series = convert(item)
    assert series.x_shift_angstrom.tolist() == [-1, 2, -3]
    assert series.y_shift_angstrom.tolist() == [-4, -4, -4]
    assert_same(convert(tilt_series_to_warp(series, item)), series)


def test_centre_of_odd_images(tmp_path):
    # Warp's centre of 49 pixels is the coordinate 24.5, ours pixel 24.
    series = convert(read(tmp_path, document()), image_shape=(49, 64))
    assert series.y_shift_angstrom.tolist() == [1, 1, 1]
    assert series.x_shift_angstrom.tolist() == [0, 0, 0]
    assert_same(convert(tilt_series_to_warp(series), image_shape=(49, 64)), series)


def test_defocus_of_grids_with_other_nodes(tmp_path):
    nodes = np.array([[[1.0, 3.0]], [[3.0, 5.0]]])
    item = read(tmp_path, document(grid("GridCTF", nodes) + grid("GridCTFPhase", np.full((1, 1, 1), 0.5))))
    series = convert(item)
    assert series.mean_defocus_angstrom == pytest.approx([20000, 30000, 40000])
    assert series.phase_shift_deg == pytest.approx([90, 90, 90])


def test_the_hand_is_the_flag_and_changes_no_geometry(tmp_path):
    series = convert(read(tmp_path, document(attributes='LevelAngleX="2"')))
    back = convert(tilt_series_to_warp(replace(series, hand=-1)))
    assert (series.hand, back.hand) == (1, -1)
    assert np.allclose(back.y_tilt_deg, series.y_tilt_deg)
    assert np.allclose(back.x_tilt_deg, series.x_tilt_deg)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x_tilt_deg": np.arange(3.0)}, "x tilts from 0 to 2"),
        ({"magnification": np.diag([1.0, 1.02])}, "magnification"),
    ],
)
def test_what_warp_cannot_hold(tmp_path, change, words):
    series = convert(read(tmp_path, document()))
    with pytest.raises(UserError, match=words):
        tilt_series_to_warp(replace(series, **change))


def test_base_with_another_number_of_views(tmp_path):
    item = read(tmp_path, document())
    with pytest.raises(UserError, match="of 3 views; expected 2"):
        tilt_series_to_warp(convert(item).take([0, 1]), item)


def test_movie_of_a_frame_series(tmp_path):
    inside = '<CTF><Param Name="Defocus" Value="1.5" /></CTF>' + grid("GridCTF", np.ones((1, 2, 2)))
    item = read(tmp_path, f'<Movie MeanFrameMovement="1.2">{inside}</Movie>')
    assert item.kind == "Movie"
    assert item.ctf["Defocus"] == "1.5"
    assert item.grids["GridCTF"].values.shape == (1, 2, 2)
    with pytest.raises(FileFormatError, match="expected a tilt series"):
        convert(item)


def test_grid_places_and_margins(tmp_path):
    text = (
        '<GridVolumeWarpX Width="1" Height="1" Depth="2" Duration="2" MarginX="0.1">'
        '<Node X="0" Y="0" Z="1" W="0" Value="1E-05" /><Node X="0" Y="0" Z="0" W="0" Value="2" />'
        '<Node X="0" Y="0" Z="0" W="1" Value="3" /><Node X="0" Y="0" Z="1" W="1" Value="4" />'
        "</GridVolumeWarpX>"
    )
    warp = read(tmp_path, document(text)).grids["GridVolumeWarpX"]
    assert warp.values[:, :, 0, 0].tolist() == [[2, 1e-5], [3, 4]]
    assert warp.margins == (0.1, 0, 0)


NODE = '<Node X="0" Y="0" Z="0" Value="1" />'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<TiltSeries>",
        "<Other />",
        '<!DOCTYPE a [<!ENTITY b "c">]><TiltSeries />',
        '<?xml version="1.0"?><!DOCTYPE TiltSeries SYSTEM "file:///etc/passwd"><TiltSeries />',
        document("<Dose>1\n2</Dose>"),
        document('<GridCTF Width="2" Height="1" Depth="1">' + NODE + "</GridCTF>"),
        document('<GridCTF Width="1000000" Height="1000000" Depth="1000000">' + NODE + "</GridCTF>"),
        document('<GridCTF Width="-1" Height="-1" Depth="1">' + NODE + "</GridCTF>"),
        document('<GridCTF Width="1" Height="1" Depth="2">' + NODE + NODE + "</GridCTF>"),
        document('<GridCTF Width="1" Height="1" Depth="1"><Node X="0" Y="0" Z="5" Value="1" /></GridCTF>'),
        document('<GridCTF Width="1" Height="1" Depth="1"><Node X="0" Y="0" Z="0" Value="NaN" /></GridCTF>'),
    ],
)
def test_hostile_documents(tmp_path, text):
    with pytest.raises(FileFormatError, match=r"a\.xml"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        document(angles="-1\nnan\n1"),
        document(angles="-1\nx\n1"),
        document("<UseTilt>True\nyes\nTrue</UseTilt>"),
        document(attributes='LevelAngleX="inf"'),
        document(attributes='AreAnglesInverted="maybe"'),
    ],
)
def test_hostile_values(tmp_path, text):
    item = read(tmp_path, text)
    with pytest.raises(FileFormatError, match="expected"):
        convert(item)


def test_no_utf8_and_no_file(tmp_path):
    (tmp_path / "a.xml").write_bytes(b"\xff\xfe<\x00")
    with pytest.raises(FileFormatError, match="UTF-8"):
        read_warp_xml(tmp_path / "a.xml")
    with pytest.raises(MissingFileError):
        read_warp_xml(tmp_path / "b.xml")


def test_movies_lose_their_folders(tmp_path):
    item = read(tmp_path, document())
    assert movie_names(item) == ("a.tif", "b.tif", "c.tif")
    assert convert(item).images[1] == ImageReference(Path("b.tif"))


@pytest.mark.parametrize("path", ["../..", "a/..", "..\\.."])
def test_movie_that_is_a_folder(tmp_path, path):
    text = document().replace("../2/b.tif", path)
    with pytest.raises(FileFormatError, match="MoviePath"):
        movie_names(read(tmp_path, text))


def test_tomostar(tmp_path):
    series = TiltSeries(
        name="a",
        optics=Optics(2.0),
        image_shape=(48, 64),
        images=(ImageReference(Path("frames/a.tif")), ImageReference(Path("stack.mrc"), 1)),
        nominal_tilt_deg=np.array([-3.0, 6.0]),
        z_rot_deg=np.array([85.0, 85.5]),
        pre_exposure_e_per_a2=np.array([0.0, 3.0]),
    )
    write_tomostar(tmp_path / "a.tomostar", series)
    table = read_tomostar(tmp_path / "a.tomostar")
    assert table["wrpMovieName"].tolist() == ["a.tif", "stack_002.mrc"]
    assert table["wrpAngleTilt"].tolist() == [3, -6]
    assert table["wrpAxisAngle"].tolist() == [85, 85.5]
    assert table["wrpDose"].tolist() == [0, 3]
    (tmp_path / "b.tomostar").write_text("data_\n\nloop_\n_wrpMovieName #1\na.tif\n")
    with pytest.raises(FileFormatError, match="wrpAngleTilt"):
        read_tomostar(tmp_path / "b.tomostar")
    assert list(read_table(tmp_path / "a.tomostar").columns)[:2] == ["wrpMovieName", "wrpAngleTilt"]
