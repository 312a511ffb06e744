"""SerialEM's mdoc files: nothing is lost, and what is needed is read."""

from datetime import datetime
from pathlib import Path

import pytest

from verglas.errors import FileFormatError, MissingFileError
from verglas.io.mdoc import (
    Mdoc,
    MdocSection,
    get_acquisition_order,
    get_exposures,
    get_frame_names,
    get_number,
    get_pixel_spacing_angstrom,
    get_tilt_angles,
    get_tilt_axis_angle_deg,
    get_times,
    read_mdoc,
    write_mdoc,
)


def test_real_files_round_trip_byte_for_byte(shared_data: Path, tmp_path: Path) -> None:
    paths = sorted((shared_data / "formats" / "mdoc").rglob("*.mdoc"))
    assert len(paths) == 62
    for path in paths:
        write_mdoc(tmp_path / "copy.mdoc", read_mdoc(path))
        assert (tmp_path / "copy.mdoc").read_bytes() == path.read_bytes().replace(b"\r\n", b"\n"), path


def test_a_real_stack(shared_data: Path) -> None:
    mdoc = read_mdoc(shared_data / "formats" / "mdoc" / "TS_01.mrc.mdoc")
    assert len(mdoc.sections) == 41
    assert mdoc.globals["ImageSize"] == "924 958"
    assert get_tilt_angles(mdoc)[:3] == [0.000999877, 3.00113, -2.99863]
    assert get_frame_names(mdoc)[:2] == ["TS_01_000_0.0.mrc", "TS_01_001_3.0.mrc"]
    assert get_exposures(mdoc) == [None] * 41  # the file says 0 throughout
    assert get_times(mdoc)[0] == datetime(2015, 11, 30, 15, 21, 38)
    assert get_acquisition_order(mdoc) == list(range(41))
    assert get_pixel_spacing_angstrom(mdoc) == 5.4
    assert get_tilt_axis_angle_deg(mdoc) == 85.3
    # The title and the image's rotation in the sections say the same.
    assert get_tilt_axis_angle_deg(Mdoc(mdoc.globals, [], mdoc.sections)) == pytest.approx(85.3)


def test_real_frames_agree_with_their_names(shared_data: Path) -> None:
    paths = sorted((shared_data / "formats" / "mdoc" / "frames").glob("*.mdoc"))
    mdocs = [read_mdoc(path) for path in paths]
    for path, mdoc in zip(paths, mdocs, strict=True):
        name = path.name.removesuffix(".mdoc")
        assert get_frame_names(mdoc) == [name]
        assert get_tilt_angles(mdoc)[0] == pytest.approx(
            float(name.removesuffix(".mrc").split("_")[-1]), abs=0.1
        )
        assert mdoc.sections[0].kind == "FrameSet"
        assert get_exposures(mdoc) == [2.23843]
        assert get_pixel_spacing_angstrom(mdoc) == 1.971
    together = Mdoc(sections=[mdoc.sections[0] for mdoc in mdocs])
    assert get_acquisition_order(together) == list(range(61))


def test_agrees_with_mdocfile(shared_data: Path) -> None:
    mdocfile = pytest.importorskip("mdocfile")
    path = shared_data / "formats" / "mdoc" / "TS_01.mrc.mdoc"
    table = mdocfile.read(path)
    mdoc = read_mdoc(path)
    assert get_tilt_angles(mdoc) == table["TiltAngle"].tolist()
    assert get_frame_names(mdoc) == [item.name for item in table["SubFramePath"]]
    assert [get_number(section.values, "Defocus") for section in mdoc.sections] == table["Defocus"].tolist()


def test_order_follows_times_not_the_file(tmp_path: Path) -> None:
    times = ["06-Jun-23  23:59:58", "07-Jun-2023  00:01:00", "06-Jun-23  23:00:00"]
    sections = [MdocSection("ZValue", str(i), {"DateTime": time}) for i, time in enumerate(times)]
    assert get_acquisition_order(Mdoc(sections=sections)) == [1, 2, 0]
    without = [*sections, MdocSection("ZValue", "3", {})]
    assert get_acquisition_order(Mdoc(sections=without)) == [0, 1, 2, 3]
    assert get_frame_names(
        Mdoc(sections=[MdocSection("ZValue", "0", {"SubFramePath": r"X:\a b\c.eer"})])
    ) == ["c.eer"]
    assert get_tilt_axis_angle_deg(Mdoc(sections=without)) is None


def test_repeated_keys_other_sections_and_any_byte_survive(tmp_path: Path) -> None:
    path = tmp_path / "a.mdoc"
    raw = (
        b"T = SerialEM: \xb5m scope\nT =     Tilt axis angle = -12.5, binning = 1\nVoltage = 300\n\n"
        b"[Image = a b.tif]\nTiltAngle = 3\nNote = x = [y]\nNothing = \n"
    )
    path.write_bytes(raw)
    mdoc = read_mdoc(path)
    assert mdoc.sections[0].kind == "Image"
    assert mdoc.sections[0].values["Note"] == "x = [y]"
    assert get_tilt_axis_angle_deg(mdoc) == -12.5
    write_mdoc(path, mdoc)
    assert path.read_bytes() == raw


def test_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "a.mdoc"
    with pytest.raises(MissingFileError, match=r"a\.mdoc"):
        read_mdoc(path)
    path.write_text("\n")
    with pytest.raises(FileFormatError, match="is empty"):
        read_mdoc(path)
    path.write_text("Voltage = 300\nrubbish\n")
    with pytest.raises(FileFormatError, match=r"line 2 of .* is not `key = value`; got 'rubbish'"):
        read_mdoc(path)
    section = Mdoc(sections=[MdocSection("ZValue", "7", {"ExposureDose": "much", "DateTime": "today"})])
    with pytest.raises(FileFormatError, match="section 7 of the mdoc file lacks 'TiltAngle'"):
        get_tilt_angles(section)
    with pytest.raises(FileFormatError, match="must be a number; got 'much'"):
        get_exposures(section)
    with pytest.raises(FileFormatError, match="got 'today'"):
        get_times(section)
    with pytest.raises(FileFormatError, match="lacks 'PixelSpacing'"):
        get_pixel_spacing_angstrom(section)
