import struct
from dataclasses import replace
from pathlib import Path

import imodmodel
import numpy as np
import pytest
import torch

from verglas.errors import FileFormatError, MissingFileError, UserError
from verglas.io.imod import (
    ImodAlignment,
    ImodCommand,
    ImodLocal,
    imod_tomogram_centre,
    read_command,
    read_imod_folder,
    read_local,
    read_tlt,
    read_xf,
    tilt_series_from_imod,
    tilt_series_to_imod,
    write_command,
    write_imod_folder,
    write_local,
    write_tlt,
    write_xf,
)
from verglas.io.imod_model import list_points, make_imod_model, read_imod_model, write_imod_model
from verglas.model import LocalField, Optics
from verglas.ops.local_field import evaluate_field

IDENTITY = np.concatenate([np.eye(2), np.zeros((2, 1))], axis=1)


def random_alignment(count: int = 5) -> ImodAlignment:
    rng = np.random.default_rng(0)
    transforms = np.concatenate(
        [np.eye(2) + rng.normal(0, 0.2, (count, 2, 2)), rng.normal(0, 20, (count, 2, 1))], axis=2
    )
    return ImodAlignment(transforms, rng.uniform(-60, 60, count), rng.uniform(-3, 3, count), excluded=(2, 4))


@pytest.mark.parametrize(
    ("name", "read", "write"),
    [
        ("tilt_series_empiar10499/imod/00254.xf", read_xf, write_xf),
        ("formats/imod/imod_1/tilt_1.xf", read_xf, write_xf),
        ("formats/aretomo/test.xf", read_xf, write_xf),
        ("tilt_series_empiar10499/imod/00254.tlt", read_tlt, write_tlt),
        ("formats/emclarity/riboNew07.tlt", read_tlt, write_tlt),
        ("formats/imod/imod_1/tilt.com", read_command, write_command),
        ("formats/imod/imod_1/newst.com", read_command, write_command),
        ("formats/emclarity/riboNew07.erase", read_imod_model, write_imod_model),
    ],
)
def test_real_files_come_back_byte_for_byte(shared_data, tmp_path, name, read, write):
    write(tmp_path / "out", read(shared_data / name))
    assert (tmp_path / "out").read_bytes() == (shared_data / name).read_bytes()


def test_xf_columns(tmp_path):
    (tmp_path / "a.xf").write_text("1 2 3 4 5 6\n\n 7 8 9 10 11 12\n")
    assert np.array_equal(read_xf(tmp_path / "a.xf")[0], [[1, 2, 5], [3, 4, 6]])
    assert read_xf(tmp_path / "a.xf").shape == (2, 2, 3)


def test_more_decimals_than_imod_writes_are_not_lost(tmp_path):
    angles = np.array([1.0, -2.345678, 60.25])
    write_tlt(tmp_path / "a.tlt", angles)
    assert np.array_equal(read_tlt(tmp_path / "a.tlt"), angles)
    assert (tmp_path / "a.tlt").read_text().splitlines()[0] == "   1.00"
    transforms = random_alignment().transforms
    write_xf(tmp_path / "a.xf", transforms)
    assert np.array_equal(read_xf(tmp_path / "a.xf"), transforms)


@pytest.mark.parametrize(
    "text", ["", "1 2 3 4 5\n", "1 0 0 1 0 nan\n", "1 0 0 1 0 0\n1 0 0\n", "a b c d e f\n"]
)
def test_bad_transforms(tmp_path, text):
    (tmp_path / "a.xf").write_text(text)
    with pytest.raises(FileFormatError, match=r"a\.xf"):
        read_xf(tmp_path / "a.xf")


def test_binary_and_missing_files(tmp_path):
    (tmp_path / "a.tlt").write_bytes(b"\x00\xff\x80")
    with pytest.raises(FileFormatError, match="binary"):
        read_tlt(tmp_path / "a.tlt")
    with pytest.raises(MissingFileError):
        read_tlt(tmp_path / "b.tlt")


@pytest.mark.parametrize(("has_x_tilt", "has_z_factors"), [(False, False), (True, False), (True, True)])
def test_local_alignments_round_trip(tmp_path, has_x_tilt, has_z_factors):
    rng = np.random.default_rng(1)
    shape = (2, 3, 12)
    local = ImodLocal(
        start_px=(100, 120),
        step_px=(200, 210),
        tilt_deg=rng.normal(size=shape).round(2),
        transforms=rng.normal(size=(*shape, 2, 3)).round(3),
        x_tilt_deg=rng.normal(size=shape).round(2) if has_x_tilt else None,
        z_factors=rng.normal(size=(*shape, 2)).round(4) if has_z_factors else None,
        pixel_size=2.5,
    )
    write_local(tmp_path / "a.local", local)
    again = read_local(tmp_path / "a.local")
    for field in ("tilt_deg", "transforms", "x_tilt_deg", "z_factors"):
        ours, theirs = getattr(local, field), getattr(again, field)
        assert (ours is None and theirs is None) or np.array_equal(ours, theirs)
    assert (again.start_px, again.step_px, again.pixel_size) == ((100, 120), (200, 210), 2.5)


def test_local_as_tilt_reads_it(tmp_path):
    # One line of angles, then a transform for each view; areas run along x first.
    head = "2 1 50 60 100 110\n"
    areas = ["0.1 0.2\n1 0 0 1 5 6\n1 0 0 1 7 8\n", "0.3 0.4\n1 0 0 1 9 10\n1 0 0 1 11 12\n"]
    (tmp_path / "a.local").write_text(head + "".join(areas))
    local = read_local(tmp_path / "a.local")
    assert local.tilt_deg.tolist() == [[[0.1, 0.2], [0.3, 0.4]]]
    assert local.transforms[0, 1, :, :, 2].tolist() == [[9, 10], [11, 12]]
    assert local.x_tilt_deg is None


@pytest.mark.parametrize(
    "text", ["2 2 0 0 1 1\n1 2 3\n", "-1 2 0 0 1 1\n1 2 3\n", "2 2 0\n", "2 2 0 0 1 1\n"]
)
def test_bad_local_alignments(tmp_path, text):
    (tmp_path / "a.local").write_text(text)
    with pytest.raises(FileFormatError, match="local alignment file"):
        read_local(tmp_path / "a.local")


def test_etomo_folder(shared_data):
    alignment = read_imod_folder(shared_data / "formats" / "imod" / "imod_1")
    assert alignment.thickness_px == 2000
    assert alignment.full_image == (3708, 3832)
    assert alignment.excluded == ()
    assert len(alignment.transforms) == len(alignment.tilt_deg) == len(alignment.x_tilt_deg) == 59
    assert alignment.commands["tilt.com"].values("radial") == ("0.35", "0.035")
    series = tilt_series_from_imod(
        alignment, name="a", stack=Path("a.st"), optics=Optics(1.35), image_shape=(3832, 3708)
    )
    # The axis of this series lies at 100.45 degrees: atan2 of the second row of its first transform.
    expected = np.rad2deg(np.arctan2(0.9834202, -0.1813379))
    assert series.z_rot_deg[0] == pytest.approx(-expected, abs=1e-4)
    assert series.volume_shape == (2000, 3832, 3708)


def test_entries_of_command_files():
    command = ImodCommand(("$tilt", "SHIFT 5.0, -2", "excludelist2 1,3-5", "SHIFT 6.0"))
    assert command.values("shift") == ("6.0",)
    assert command.numbers("SHIFT", (0.0, 1.5)) == (6.0, 1.5)
    assert command.values("EXCLUDELIST2") == ("1", "3-5")
    assert command.values("THICKNESS") is None


def write_folder(folder: Path, tilt_com: str, count: int = 6) -> None:
    write_xf(folder / "a.xf", np.tile(IDENTITY, (count, 1, 1)))
    write_tlt(folder / "a.tlt", np.arange(count))
    (folder / "tilt.com").write_text(tilt_com)


def test_values_of_tilt_com(tmp_path):
    write_folder(
        tmp_path, "EXCLUDELIST 2\nEXCLUDELIST2 4-5\nXAXISTILT 1.5\nOFFSET -2 3\nSHIFT 4 5\nTHICKNESS 300\n"
    )
    alignment = read_imod_folder(tmp_path)
    assert alignment.excluded == (2, 4, 5)
    assert (alignment.x_axis_tilt_deg, alignment.offset_deg, alignment.axis_shift_px) == (1.5, -2, 3)
    assert alignment.shift_xz_px == (4, 5)
    series = tilt_series_from_imod(
        alignment, name="a", stack=Path("a.mrc"), optics=Optics(2.0), image_shape=(8, 8)
    )
    assert series.selected.tolist() == [True, False, True, False, False, True]
    assert series.x_tilt_deg.tolist() == [-1.5] * 6
    assert series.y_tilt_deg.tolist() == [-2, -1, 0, 1, 2, 3]
    assert series.nominal_tilt_deg.tolist() == list(range(6))


@pytest.mark.parametrize(
    "text",
    ["EXCLUDELIST 0", "EXCLUDELIST 5-2", "EXCLUDELIST x", "EXCLUDELIST 1-99999999999", "THICKNESS nan"],
)
def test_bad_tilt_com(tmp_path, text):
    write_folder(tmp_path, f"{text}\n")
    with pytest.raises(FileFormatError):
        read_imod_folder(tmp_path)


def test_excluded_view_that_is_not_there(tmp_path):
    write_folder(tmp_path, "EXCLUDELIST 7\n")
    with pytest.raises(UserError, match="views from 1 to 6"):
        read_imod_folder(tmp_path)


def test_names_in_command_files_stay_in_the_folder(tmp_path):
    (tmp_path / "in").mkdir()
    write_folder(tmp_path / "in", "TILTFILE ../secret.tlt\n")
    write_tlt(tmp_path / "secret.tlt", np.zeros(6))
    with pytest.raises(UserError, match="leads outside"):
        read_imod_folder(tmp_path / "in")


def test_different_numbers_of_views(tmp_path):
    write_folder(tmp_path, "")
    write_tlt(tmp_path / "a.tlt", np.arange(5))
    with pytest.raises(FileFormatError, match="5 angles"):
        read_imod_folder(tmp_path)


def test_folder_round_trip(tmp_path):
    alignment = replace(
        random_alignment(), shift_xz_px=(2.0, 3.0), thickness_px=400, full_image=(64, 48), offset_deg=1.0
    )
    write_imod_folder(tmp_path, "TS_01", alignment)
    again = read_imod_folder(tmp_path)
    assert np.array_equal(again.transforms, alignment.transforms)
    assert np.array_equal(again.tilt_deg, alignment.tilt_deg)
    assert np.array_equal(again.x_tilt_deg, alignment.x_tilt_deg)
    for field in ("excluded", "shift_xz_px", "thickness_px", "full_image", "offset_deg"):
        assert getattr(again, field) == getattr(alignment, field)


@pytest.mark.parametrize("shape", [(48, 64), (49, 65)])
def test_series_and_back(shape):
    alignment = random_alignment()
    series = tilt_series_from_imod(
        alignment, name="a", stack=Path("a.mrc"), optics=Optics(1.7), image_shape=shape
    )
    back = tilt_series_to_imod(series)
    assert np.abs(back.transforms - alignment.transforms).max() < 1e-12
    assert np.abs(back.x_tilt_deg - alignment.x_tilt_deg).max() < 1e-12
    assert back.excluded == alignment.excluded
    # M is symmetric when the rotation that was taken out is the nearest one.
    assert np.abs(series.magnification - series.magnification.transpose(0, 2, 1)).max() < 1e-12


@pytest.mark.parametrize("matrix", [[[1, 0], [0, 0]], [[-1, 0], [0, 1]]])
def test_transforms_that_flatten_or_mirror(matrix):
    transforms = np.concatenate([np.array(matrix, float), np.zeros((2, 1))], axis=1)[None]
    with pytest.raises(UserError, match="transform 1"):
        tilt_series_from_imod(
            ImodAlignment(transforms, np.zeros(1)),
            name="a",
            stack=Path("a.mrc"),
            optics=Optics(1.0),
            image_shape=(8, 8),
        )


def test_tomogram_centre():
    alignment = ImodAlignment(IDENTITY[None], np.zeros(1))
    assert imod_tomogram_centre((10, 20, 30), 4.0, alignment, 2.0) == (2.0, 2.0, 2.0)
    # Positive SHIFT moves the slice right and up in its own rows, so the region is left and, turned, above.
    moved = replace(alignment, shift_xz_px=(3.0, 5.0))
    assert imod_tomogram_centre((10, 20, 30), 4.0, moved, 2.0) == (-4.0, 2.0, 12.0)
    assert imod_tomogram_centre((10, 21, 30), 4.0, alignment, 2.0)[1] == 0.0


def test_model_agrees_with_imodmodel(shared_data):
    path = shared_data / "formats" / "emclarity" / "riboNew07.erase"
    model = read_imod_model(path)
    points, members = list_points(model)
    table = imodmodel.read(path)
    assert np.allclose(points, table[["x", "y", "z"]].to_numpy())
    assert np.array_equal(members[:, 0], table["object_id"])
    assert np.array_equal(members[:, 1], table["contour_id"])
    assert model.image_size == (428, 414, 41)
    assert model.name == "IMOD-NewModel"


def test_new_model_is_read_by_imodmodel(tmp_path):
    contours = [np.array([[1.5, 2.5, 0], [3.5, 4.5, 1]]), np.array([[7, 8, 2.0]])]
    path = tmp_path / "beads.mod"
    write_imod_model(path, make_imod_model(contours, (64, 48, 3), pixel_size_angstrom=13.0, radius_px=5))
    table = imodmodel.read(path)
    assert table[["x", "y", "z"]].to_numpy().tolist() == np.concatenate(contours).tolist()
    assert table["contour_id"].tolist() == [0, 0, 1]
    header = imodmodel.ImodModel.from_file(path).header
    assert (header.xmax, header.ymax, header.zmax, header.objsize) == (64, 48, 3, 1)
    assert (header.pixelsize, header.units) == (pytest.approx(1.3), -9)
    assert read_imod_model(path).objects[0].name == ""


def test_everything_else_of_a_model_is_kept(tmp_path):
    model = make_imod_model([np.ones((2, 3))], (8, 8, 8))
    item = model.objects[0]
    contour = replace(item.contours[0], chunks=((b"SIZE", struct.pack(">2f", 1, 2)),), surface=3)
    mesh = struct.pack(">iiIhh", 1, 2, 0, 0, 0) + bytes(12 + 8)
    item = replace(item, contours=(contour,), meshes=(mesh,), chunks=((b"IMAT", bytes(16)),))
    model = replace(model, objects=(item, item), chunks=((b"VIEW", bytes(4)), (b"ABCD", b"")))
    write_imod_model(tmp_path / "a.mod", model)
    again = read_imod_model(tmp_path / "a.mod")
    write_imod_model(tmp_path / "b.mod", again)
    assert (tmp_path / "a.mod").read_bytes() == (tmp_path / "b.mod").read_bytes()
    assert len(again.objects) == 2
    assert again.objects[1].contours[0].surface == 3
    assert again.objects[1].meshes == (mesh,)
    assert again.chunks == model.chunks


def test_every_cut_of_a_model_is_refused(tmp_path):
    path = tmp_path / "a.mod"
    write_imod_model(path, make_imod_model([np.ones((3, 3))], (8, 8, 8)))
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(FileFormatError, match="IMOD model"):
            read_imod_model(path)


@pytest.mark.parametrize("count", [-1, 2**31 - 1])
def test_model_with_an_impossible_count(tmp_path, count):
    path = tmp_path / "a.mod"
    write_imod_model(path, make_imod_model([np.ones((3, 3))], (8, 8, 8)))
    raw = bytearray(path.read_bytes())
    struct.pack_into(">i", raw, raw.index(b"CONT") + 4, count)
    path.write_bytes(raw)
    with pytest.raises(FileFormatError, match="cut short or damaged"):
        read_imod_model(path)


def test_model_with_a_point_that_is_not_finite(tmp_path):
    path = tmp_path / "a.mod"
    write_imod_model(path, make_imod_model([np.ones((3, 3))], (8, 8, 8)))
    raw = bytearray(path.read_bytes())
    struct.pack_into(">f", raw, raw.index(b"CONT") + 20, np.nan)
    path.write_bytes(raw)
    with pytest.raises(FileFormatError, match="not finite"):
        read_imod_model(path)
    with pytest.raises(UserError, match="not finite"):
        make_imod_model([[[np.nan, 0, 0]]], (8, 8, 8))


def test_a_local_field_goes_through_a_local_file(tmp_path):
    """What is read evaluates to what was written, between the nodes too."""
    rng = np.random.default_rng(3)
    alignment = random_alignment()
    series = tilt_series_from_imod(
        alignment, name="TS", stack=tmp_path / "TS.mrc", optics=Optics(4.0), image_shape=(600, 800)
    )
    smooth = rng.normal(0, 3, (5, 2, 2, 2))
    field = LocalField((-1500.0, -1100.0), (1400.0, 1000.0), smooth)
    write_imod_folder(tmp_path, "TS", tilt_series_to_imod(replace(series, local=field)))
    read = read_imod_folder(tmp_path)
    again = tilt_series_from_imod(
        read, name="TS", stack=tmp_path / "TS.mrc", optics=Optics(4.0), image_shape=(600, 800)
    ).local
    assert again is not None
    assert len(again) == 5
    places = torch.from_numpy(rng.uniform(-1000, 900, (50, 2)))
    for view in range(5):
        one, other = (
            evaluate_field(torch.tensor(f.shifts_angstrom[view]), f.low_angstrom, f.high_angstrom, places)
            for f in (field, again)
        )
        assert torch.allclose(one, other, atol=0.05)


def test_a_local_area_moves_the_aligned_image_back():
    """A point that a view shows 3 and -2 pixels off, in the aligned image, is moved back by the area's line."""
    alignment = random_alignment()
    series = tilt_series_from_imod(
        alignment, name="TS", stack=Path("TS.mrc"), optics=Optics(4.0), image_shape=(600, 800)
    )
    off = np.array([3.0, -2.0])
    raw = np.linalg.solve(alignment.transforms[:, :, :2], np.broadcast_to(off[:, None], (5, 2, 1)))[..., 0]
    field = LocalField((-100.0, -100.0), (100.0, 100.0), 4.0 * raw[:, None, None])
    local = tilt_series_to_imod(replace(series, local=field)).local
    assert local is not None
    assert np.allclose(local.transforms[..., 2], -off)
    assert np.allclose(local.transforms[..., :2], np.eye(2))
    assert np.array_equal(local.tilt_deg, np.zeros((9, 9, 5)))
    # The areas cover the field about the middle of the image of 800 x 600 pixels.
    last = np.add(local.start_px, np.multiply(local.step_px, 8))
    assert (np.array(local.start_px) <= [375, 275]).all()
    assert (last >= [425, 325]).all()
