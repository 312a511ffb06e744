"""MRC files against mrcfile, RELION, hand-packed bytes and files of other programs."""

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from verglas.errors import FileFormatError, MissingFileError, UserError
from verglas.io.mrc import (
    check_finite,
    create_mrc,
    open_mrc,
    read_image,
    read_images,
    read_mrc,
    read_mrc_header,
    write_mrc,
)
from verglas.model import ImageReference

MODES = {"int8": 0, "int16": 1, "float32": 2, "complex64": 4, "uint16": 6, "float16": 12}
EXACT = {"int8", "int16", "uint16"}


def make_data(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        return rng.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)
    if kind.kind == "c":
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(kind)
    return rng.normal(3.0, 10.0, size=shape).astype(kind)


def pack_mrc(
    data, order="<", *, extended=b"", map_word=b"MAP ", stamp=None, cell=(0.0, 0.0, 0.0), imod=None, **words
):
    """A file put together by byte positions of the MRC2014 paper, table 1."""
    mode = words.pop("mode", MODES.get(data.dtype.name, 0))
    nz, ny, nx = data.shape
    sizes = (words.pop("nx", nx), words.pop("ny", ny), words.pop("nz", nz))
    header = bytearray(1024)
    struct.pack_into(order + "10i", header, 0, *sizes, mode, 0, 0, 0, nx, ny, words.pop("mz", nz))
    struct.pack_into(order + "3f", header, 40, *cell)
    struct.pack_into(order + "3i", header, 64, *words.pop("axes", (1, 2, 3)))
    struct.pack_into(order + "2i", header, 88, words.pop("ispg", 0), words.pop("nsymbt", len(extended)))
    if imod is not None:
        struct.pack_into(order + "2i", header, 152, 1146047817, imod)
    header[208:212] = map_word
    header[212:216] = stamp if stamp is not None else (b"\x44\x44\0\0" if order == "<" else b"\x11\x11\0\0")
    assert not words
    return bytes(header) + extended + data.astype(data.dtype.newbyteorder(order)).tobytes()


@pytest.mark.parametrize("dtype", MODES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 7), (3, 4, 6), (2, 1, 9)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_mode_in_both_byte_orders_is_read_as_packed(tmp_path, dtype, shape, order):
    data = make_data(shape, dtype)
    (tmp_path / "a.mrc").write_bytes(pack_mrc(data, order))
    mapped = open_mrc(tmp_path / "a.mrc")
    assert mapped.shape == shape
    assert mapped.dtype.name == dtype
    assert not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, data)
    whole = read_mrc(tmp_path / "a.mrc", None)
    assert whole.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(whole, data)


@pytest.mark.parametrize("dtype", MODES)
@pytest.mark.parametrize("shape", [(5, 7), (1, 3, 3), (3, 4, 6), (4, 1, 5)])
def test_mrcfile_reads_every_mode_that_we_write(tmp_path, dtype, shape):
    data = make_data(shape, dtype)
    path = tmp_path / "a.mrc"
    write_mrc(path, data, voxel_size_angstrom=1.35, dtype=dtype, origin_angstrom=(1.5, -2.0, 30.25))
    assert mrcfile.validate(path)
    with mrcfile.open(path) as mrc:
        assert mrc.header.mode == MODES[dtype]
        assert mrc.data.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(mrc.data, data)
        assert mrc.voxel_size.x == pytest.approx(1.35, rel=1e-6)
        assert mrc.voxel_size.z == pytest.approx(1.35, rel=1e-6)
        assert (mrc.header.origin.x, mrc.header.origin.y, mrc.header.origin.z) == (1.5, -2.0, 30.25)
        assert mrc.is_volume() == (len(shape) == 3)
        if dtype != "complex64":
            values = data.astype(np.float64)
            assert mrc.header.dmin == pytest.approx(values.min(), rel=1e-6)
            assert mrc.header.dmax == pytest.approx(values.max(), rel=1e-6)
            assert mrc.header.dmean == pytest.approx(values.mean(), rel=1e-5, abs=1e-5)
            assert mrc.header.rms == pytest.approx(values.std(), rel=1e-6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from(sorted(MODES)),
    is_stack=st.booleans(),
    extended=st.binary(max_size=50),
    voxel=st.floats(0.01, 500.0),
    seed=st.integers(0, 99),
)
def test_what_is_written_comes_back(tmp_path, shape, dtype, is_stack, extended, voxel, seed):
    data = make_data(shape, dtype, seed)
    path = tmp_path / "a.mrc"
    write_mrc(
        path,
        data,
        voxel_size_angstrom=voxel,
        dtype=dtype,
        is_stack=is_stack,
        extended=extended,
        exttyp="VGLS",
    )
    header = read_mrc_header(path, extended=True)
    assert header.shape == shape
    assert header.extended == extended
    assert header.exttyp == "VGLS"
    assert header.is_volume == (not is_stack)
    assert header.labels == ("verglas",)
    assert header.voxel_size_zyx_angstrom == pytest.approx((voxel,) * 3, rel=1e-6)
    assert header.pixel_size_angstrom == pytest.approx(voxel, rel=1e-6)
    np.testing.assert_array_equal(read_mrc(path, None), data)


@pytest.mark.relion
@pytest.mark.parametrize("dtype", ["float32", "int16", "uint16", "int8"])
def test_relion_reads_sizes_statistics_and_pixel_size(tmp_path, relion, dtype):
    data = make_data((9, 10, 12), dtype)
    if dtype == "uint16":
        # RELION 3.1.3 takes mode 6 for signed, also in files of mrcfile; the standard says unsigned.
        data >>= 1
    write_mrc(tmp_path / "a.mrc", data, voxel_size_angstrom=2.75, dtype=dtype)
    line = relion("relion_image_handler", "--i", "a.mrc", "--stats").strip().splitlines()[-1]
    assert "(x,y,z,n)= 12 x 10 x 9 x 1" in line
    said = {key: float(value) for key, value in re.findall(r"(\w+) ?= ([-+.\de]+)", line)}
    values = data.astype(np.float64)
    assert said["avg"] == pytest.approx(values.mean(), rel=1e-4)
    assert said["stddev"] == pytest.approx(values.std(), rel=1e-4)
    assert said["minval"] == pytest.approx(values.min(), rel=1e-4)
    assert said["maxval"] == pytest.approx(values.max(), rel=1e-4)
    assert said["angpix"] == pytest.approx(2.75, rel=1e-5)


@pytest.mark.relion
def test_relion_and_we_agree_on_the_order_of_axes_and_sections(tmp_path, relion):
    data = make_data((3, 6, 8), "float32")
    write_mrc(tmp_path / "a.mrcs", data, voxel_size_angstrom=1.5, is_stack=True)
    relion("relion_image_handler", "--i", "a.mrcs", "--multiply_constant", 2, "--o", "b.mrcs")
    np.testing.assert_array_equal(read_mrc(tmp_path / "b.mrcs"), 2 * data)
    header = read_mrc_header(tmp_path / "b.mrcs")
    assert header.pixel_size_angstrom == pytest.approx(1.5)
    relion("relion_image_handler", "--i", "2@a.mrcs", "--flipX", "--o", "c.mrc")
    np.testing.assert_array_equal(read_image(ImageReference(tmp_path / "c.mrc")), data[1, :, ::-1])


def test_same_data_give_the_same_bytes(tmp_path):
    data = make_data((4, 33, 35), "float32")
    write_mrc(tmp_path / "a.mrc", data, voxel_size_angstrom=1.0)
    with create_mrc(tmp_path / "b.mrc", data.shape, voxel_size_angstrom=1.0) as writer:
        writer.write(data[:1])
        writer.write(data[1])
        writer.write(data[2:])
    assert (tmp_path / "a.mrc").read_bytes() == (tmp_path / "b.mrc").read_bytes()


def test_what_settled_is_in_the_file_before_its_end(tmp_path):
    data = make_data((4, 33, 35), "float32")
    with create_mrc(tmp_path / "a.mrc", data.shape, voxel_size_angstrom=1.0) as writer:
        writer.write(data[:3])
        writer.settle()
        (unfinished,) = tmp_path.iterdir()
        assert unfinished.read_bytes()[1024:] == data[:3].tobytes()
        writer.write(data[3])
    np.testing.assert_array_equal(read_mrc(tmp_path / "a.mrc"), data)


def test_statistics_do_not_cancel_on_a_large_offset(tmp_path):
    data = np.random.default_rng(0).normal(1e6, 1.0, (3, 300, 500)).astype(np.float32)
    write_mrc(tmp_path / "a.mrc", data, voxel_size_angstrom=1.0)
    *_, mean, deviation = read_mrc_header(tmp_path / "a.mrc").statistics
    assert mean == pytest.approx(data.astype(np.float64).mean(), rel=1e-7)
    assert deviation == pytest.approx(data.astype(np.float64).std(), rel=1e-6)


def test_statistics_of_data_with_a_nan_are_not_determined(tmp_path):
    data = np.ones((2, 3, 3), np.float32)
    data[1, 1, 1] = np.nan
    write_mrc(tmp_path / "a.mrc", data, voxel_size_angstrom=1.0)
    low, high, mean, deviation = read_mrc_header(tmp_path / "a.mrc").statistics
    assert high < low
    assert mean < min(low, high)
    assert deviation < 0


def test_signed_bytes_follow_the_flag_of_imod(tmp_path):
    data = np.array([[[-1, 127, -128, 0]]], np.int8)
    for imod, expected in ((None, "int8"), (1, "int8"), (0, "uint8"), (2, "uint8")):
        for order in "<>":
            (tmp_path / "a.mrc").write_bytes(pack_mrc(data, order, imod=imod))
            assert open_mrc(tmp_path / "a.mrc").dtype.name == expected
            np.testing.assert_array_equal(open_mrc(tmp_path / "a.mrc"), data.view(expected))
    write_mrc(tmp_path / "b.mrc", data, voxel_size_angstrom=1.0, dtype=np.int8)
    raw = (tmp_path / "b.mrc").read_bytes()
    assert struct.unpack_from("<2i", raw, 152) == (1146047817, 1)
    np.testing.assert_array_equal(read_mrc(tmp_path / "b.mrc"), data)


@pytest.mark.parametrize("order", ["<", ">"])
def test_old_files_without_map_word_and_stamp_are_read(tmp_path, order):
    data = make_data((2, 3, 5), "float32")
    raw = pack_mrc(data, order, map_word=b"\0" * 4, stamp=b"\0" * 4, axes=(0, 0, 0), cell=(10.0, 6.0, 4.0))
    (tmp_path / "a.mrc").write_bytes(raw)
    np.testing.assert_array_equal(read_mrc(tmp_path / "a.mrc"), data)
    assert read_mrc_header(tmp_path / "a.mrc").voxel_size_zyx_angstrom == (2.0, 2.0, 2.0)


def test_wrong_machine_stamp_is_seen_through(tmp_path):
    data = make_data((2, 3, 5), "int16")
    (tmp_path / "a.mrc").write_bytes(pack_mrc(data, ">", stamp=b"\x44\x44\0\0"))
    np.testing.assert_array_equal(read_mrc(tmp_path / "a.mrc"), data)


@pytest.mark.parametrize(
    ("words", "is_volume"),
    [
        ({"ispg": 0, "mz": 1}, False),
        ({"ispg": 0}, False),
        ({"ispg": 1}, True),
        ({"ispg": 1, "mz": 1}, False),
        ({"ispg": 401, "mz": 2}, True),
    ],
)
def test_volumes_are_told_from_stacks(tmp_path, words, is_volume):
    (tmp_path / "a.mrc").write_bytes(pack_mrc(make_data((4, 2, 2), "float32"), **words))
    assert read_mrc_header(tmp_path / "a.mrc").is_volume == is_volume


@pytest.mark.parametrize("cell", [(0.0, 0.0, 0.0), (np.nan, 1.0, 1.0), (-5.0, 1.0, 1.0), (np.inf, 1.0, 1.0)])
def test_a_cell_that_says_nothing_is_no_pixel_size(tmp_path, cell):
    (tmp_path / "a.mrc").write_bytes(pack_mrc(make_data((1, 2, 5), "float32"), cell=cell))
    assert read_mrc_header(tmp_path / "a.mrc").pixel_size_angstrom is None


def test_files_of_other_programs(shared_data):
    expected = {
        "maps/emd_3488.mrc": ((100, 100, 100), 1.05, True),
        "membranes/class_averages.mrc": ((5, 128, 128), 2.67, False),
        "particles/relion31.mrcs": ((5, 256, 256), 1.0, False),
        "particles/empiar_10076_7.mrc": ((7, 320, 320), None, True),
        "tilt_series_empiar10499/00254.stack.mrc": ((41, 630, 652), 10.0, False),
    }
    for name, (shape, pixel_size, is_volume) in expected.items():
        header = read_mrc_header(shared_data / name)
        assert header.shape == shape
        assert header.pixel_size_angstrom == (pixel_size and pytest.approx(pixel_size, rel=1e-5))
        assert header.is_volume == is_volume
    header = read_mrc_header(shared_data / "maps/emd_3488.mrc")
    data = open_mrc(shared_data / "maps/emd_3488.mrc").astype(np.float64)
    assert header.statistics == pytest.approx((data.min(), data.max(), data.mean(), data.std()), rel=1e-3)


def test_fei_extended_header_round_trips(shared_data, tmp_path):
    source = shared_data / "micrograph_epu/fei-extended.mrc"
    header = read_mrc_header(source, extended=True)
    assert (header.exttyp, len(header.extended), header.mode) == ("FEI1", 786432, 6)
    assert header.pixel_size_angstrom == pytest.approx(0.8538, abs=1e-4)
    assert read_mrc_header(source).extended == b""
    image = read_image(ImageReference(source))
    write_mrc(
        tmp_path / "copy.mrc",
        image,
        voxel_size_angstrom=header.pixel_size_angstrom,
        dtype=np.uint16,
        extended=header.extended,
        exttyp=header.exttyp,
    )
    assert (tmp_path / "copy.mrc").read_bytes()[1024:] == source.read_bytes()[1024:]
    copy = read_mrc_header(tmp_path / "copy.mrc", extended=True)
    assert (copy.extended, copy.exttyp) == (header.extended, header.exttyp)
    assert copy.statistics[:3] == pytest.approx(header.statistics[:3], rel=1e-6)
    with mrcfile.open(tmp_path / "copy.mrc") as mrc:
        assert mrc.indexed_extended_header["Pixel size X"][0] == pytest.approx(0.8538e-10, rel=1e-3)


def test_read_images_takes_runs_and_repeats_in_the_order_asked(tmp_path):
    stacks = [make_data((6, 4, 5), kind, seed) for seed, kind in enumerate(("int16", "float32"))]
    references, expected = [], []
    for number, (data, order) in enumerate(zip(stacks, "<>", strict=True)):
        (tmp_path / f"{number}.mrcs").write_bytes(pack_mrc(data, order))
    for number, section in [(0, 1), (0, 2), (0, 3), (1, 5), (1, 4), (0, 4), (0, 4), (1, 0), (1, 2)]:
        references.append(ImageReference(tmp_path / f"{number}.mrcs", section))
        expected.append(stacks[number][section].astype(np.float32))
    images = read_images(references)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(read_image(references[3]), expected[3])


def test_large_sections_are_converted_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("verglas.io.mrc._CHUNK_BYTES", 22)
    data = make_data((3, 5, 7), "int16")
    (tmp_path / "a.mrc").write_bytes(pack_mrc(data, ">"))
    np.testing.assert_array_equal(read_mrc(tmp_path / "a.mrc"), data.astype(np.float32))


def test_bad_references_are_refused(tmp_path):
    write_mrc(tmp_path / "a.mrcs", np.zeros((3, 4, 4)), voxel_size_angstrom=1.0, is_stack=True)
    write_mrc(tmp_path / "b.mrc", np.zeros((4, 5)), voxel_size_angstrom=1.0)
    a, b = tmp_path / "a.mrcs", tmp_path / "b.mrc"
    with pytest.raises(UserError, match=r"section 4 is not in MRC file .*a\.mrcs', which holds 3"):
        read_image(ImageReference(a, 3))
    with pytest.raises(UserError, match="section 0 is not in"):
        read_image(ImageReference(a, -1))
    with pytest.raises(UserError, match="holds 3 sections; expected one image or a section"):
        read_image(ImageReference(a))
    with pytest.raises(UserError, match=r"\(4, 4\).*\(4, 5\)"):
        read_images([ImageReference(a, 0), ImageReference(b)])
    with pytest.raises(UserError, match="no images"):
        read_images([])


def test_types_that_would_lose_the_data_are_refused_on_reading(tmp_path):
    write_mrc(
        tmp_path / "a.mrc", make_data((2, 3, 3), "complex64"), voxel_size_angstrom=1.0, dtype=np.complex64
    )
    with pytest.raises(UserError, match="holds complex64, which cannot be read as float32"):
        read_mrc(tmp_path / "a.mrc")
    write_mrc(tmp_path / "b.mrc", make_data((2, 3, 3), "float32"), voxel_size_angstrom=1.0)
    with pytest.raises(UserError, match="holds float32, which cannot be read as int16"):
        read_mrc(tmp_path / "b.mrc", np.int16)
    assert read_mrc(tmp_path / "b.mrc", np.float64).dtype == np.float64


GOOD = pack_mrc(np.zeros((2, 3, 4), np.float32))
ZEROS = np.zeros((2, 3, 4), np.float32)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty"),
        (b"MAP " * 20, "holds 80 bytes; expected at least the 1024"),
        (GOOD[:-1], r"promises 1120 bytes, but the file holds 1119"),
        (GOOD[:1024], r"promises 1120 bytes, but the file holds 1024"),
        (pack_mrc(ZEROS, nx=2**31 - 1, ny=2**31 - 1, nz=2**31 - 1), "promises .*but the file holds 1120"),
        (pack_mrc(ZEROS, nx=-4), r"sizes \(z, y, x\) = \(2, 3, -4\); expected positive"),
        (pack_mrc(ZEROS, nz=0), "expected positive sizes"),
        (pack_mrc(ZEROS, mode=3), "has mode 3; expected one of 0, 1, 2, 4, 6, 12"),
        (pack_mrc(ZEROS, mode=101), "has mode 101"),
        (pack_mrc(ZEROS, mode=77, map_word=b"\0\0\0\0"), "is not an MRC file"),
        (pack_mrc(ZEROS, mode=12345678), "is not an MRC file"),
        (pack_mrc(ZEROS, axes=(3, 2, 1)), r"axes in the order \[3, 2, 1\]"),
        (pack_mrc(ZEROS, nsymbt=-1024), "extended header of -1024 bytes"),
        (pack_mrc(ZEROS, nsymbt=2**31 - 1), "promises"),
        (b"# a text file, not an image\n" * 100, "is not an MRC file"),
        (np.random.default_rng(0).bytes(5000), "is not an MRC file"),
        (b"\x1f\x8b\x08\0" + bytes(5000), "compressed with gzip; decompress it first"),
        (b"BZh9" + bytes(5000), "compressed with bzip2"),
    ],
)
def test_broken_files_are_named_in_one_sentence(tmp_path, raw, message):
    path = tmp_path / "bad.mrc"
    path.write_bytes(raw)
    for read in (read_mrc_header, open_mrc, read_mrc):
        with pytest.raises(FileFormatError, match=message) as raised:
            read(path)
        assert "bad.mrc" in str(raised.value)
        assert "\n" not in str(raised.value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 255), st.integers(-(2**31), 2**31 - 1)), min_size=1, max_size=4)
)
def test_a_header_of_random_words_never_does_worse_than_a_sentence(tmp_path, changes):
    raw = bytearray(GOOD)
    for word, value in changes:
        struct.pack_into("<i", raw, 4 * word, value)
    (tmp_path / "a.mrc").write_bytes(raw)
    try:
        size = read_mrc(tmp_path / "a.mrc", None).nbytes
    except UserError as error:
        size = 0 if "a.mrc" in str(error) else None
    assert size is not None
    assert size <= 96


def test_folder_missing_file_and_pipe_are_refused(tmp_path):
    with pytest.raises(FileFormatError, match="is a folder; expected a file"):
        read_mrc(tmp_path)
    with pytest.raises(MissingFileError, match="does not exist"):
        read_mrc(tmp_path / "none.mrc")
    os.mkfifo(tmp_path / "pipe.mrc")
    with pytest.raises(FileFormatError, match="not a regular file"):
        read_mrc(tmp_path / "pipe.mrc")


def test_a_failed_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.mrc"
    write_mrc(path, np.ones((2, 3)), voxel_size_angstrom=1.0)
    before = path.read_bytes()
    for pieces, message in (
        ([(2, 3, 3)], "the file takes 4 sections; got 2"),
        ([(3, 3, 3), (2, 3, 3)], "the file takes 4 sections; got 5"),
        ([(3, 4)], r"must be \(\.\.\., 3, 3\); got \(1, 3, 4\)"),
    ):
        with (
            pytest.raises(ValueError, match=message),
            create_mrc(path, (4, 3, 3), voxel_size_angstrom=1.0) as writer,
        ):
            [writer.write(np.zeros(piece)) for piece in pieces]
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.mrc"]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"voxel_size_angstrom": 0.0}, "`voxel_size_angstrom` must be positive; got 0.0"),
        ({"voxel_size_angstrom": np.nan}, "must be positive; got nan"),
        ({"dtype": np.float64}, "`dtype` of an MRC file must be one of .*; got float64"),
        ({"label": "Ångström"}, "`label` must be up to 80 ASCII characters"),
        ({"label": "x" * 81}, "`label` must be up to 80"),
        ({"exttyp": "LONGER"}, "`exttyp` must be up to 4"),
        ({"origin_angstrom": (0.0, np.inf, 0.0)}, "`origin_angstrom` must be three finite numbers"),
    ],
)
def test_bad_parameters_are_refused(tmp_path, keywords, message):
    with pytest.raises(UserError, match=message):
        write_mrc(tmp_path / "a.mrc", np.zeros((2, 2, 2)), **{"voxel_size_angstrom": 1.0} | keywords)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(), (3,), (0, 4, 4), (1, 2, 3, 4)])
def test_bad_shapes_are_refused(tmp_path, shape):
    with pytest.raises(UserError, match="two or three positive sizes"):
        write_mrc(tmp_path / "a.mrc", np.zeros(shape), voxel_size_angstrom=1.0)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (300.0, np.int8, "value 300.0 does not fit in int8; expected -128 to 127"),
        (-1, np.uint16, "value -1 does not fit in uint16"),
        (np.nan, np.int16, "value nan does not fit in int16"),
        (1e5, np.float16, "value 100000 does not fit in float16"),
        (1e300, np.float32, "does not fit in float32"),
        (1j, np.float32, "complex data cannot be written as float32"),
    ],
)
def test_values_that_do_not_fit_are_refused(tmp_path, value, dtype, message):
    with pytest.raises(UserError, match=message):
        write_mrc(tmp_path / "a.mrc", np.full((2, 2), value), voxel_size_angstrom=1.0, dtype=dtype)


def test_floats_become_the_nearest_integer_and_masks_become_ones(tmp_path):
    write_mrc(tmp_path / "a.mrc", np.array([[0.4, 0.6, -1.7]]), voxel_size_angstrom=1.0, dtype=np.int16)
    assert open_mrc(tmp_path / "a.mrc").tolist() == [[[0, 1, -2]]]
    write_mrc(tmp_path / "b.mrc", np.array([[True, False]]), voxel_size_angstrom=1.0, dtype=np.int8)
    assert open_mrc(tmp_path / "b.mrc").tolist() == [[[1, 0]]]
    write_mrc(tmp_path / "c.mrc", np.arange(6.0).reshape(2, 3)[:, ::-1].T, voxel_size_angstrom=1.0)
    assert read_mrc(tmp_path / "c.mrc")[0].tolist() == [[2.0, 5.0], [1.0, 4.0], [0.0, 3.0]]


def test_check_finite_counts_and_points():
    good = np.zeros((2, 3))
    assert check_finite(good, "map 'x'") is good
    assert check_finite(np.arange(3), "x").tolist() == [0, 1, 2]
    bad = good.copy()
    bad[1, 2], bad[0, 1] = np.inf, np.nan
    with pytest.raises(
        UserError, match=r"map 'x' holds 2 of 6 values that are not finite, the first at \(0, 1\)"
    ):
        check_finite(bad, "map 'x'")


def test_memory_stays_at_one_piece_while_a_file_is_streamed(tmp_path):
    program = """
import resource, sys, numpy as np
from verglas.io.mrc import create_mrc, open_mrc
piece = np.ones((1, 1024, 1024), np.float32)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
with create_mrc(sys.argv[1], (4, 1024, 1024), voxel_size_angstrom=1.0) as writer:
    for _ in range(4): writer.write(piece)
before = peak()
with create_mrc(sys.argv[1], (100, 1024, 1024), voxel_size_angstrom=1.0) as writer:
    for _ in range(100): writer.write(piece)
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.mrc")], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 20  # MiB; the file is 400 MiB
    assert (tmp_path / "a.mrc").stat().st_size == 1024 + 100 * 4 * 1024**2


def test_rows_make_the_same_file_as_sections(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).normal(size=(5, 11, 7)).astype(np.float32)
    write_mrc(tmp_path / "sections.mrc", volume, voxel_size_angstrom=2.5)
    with create_mrc(tmp_path / "rows.mrc", volume.shape, voxel_size_angstrom=2.5) as writer:
        for start in (0, 4, 8):
            writer.write_rows(volume[:, start : start + 4])
    np.testing.assert_array_equal(read_mrc(tmp_path / "rows.mrc"), volume)
    # Sums in another order differ in the last digit of the statistics, and in nothing else.
    rows, sections = (read_mrc_header(tmp_path / f"{name}.mrc") for name in ("rows", "sections"))
    np.testing.assert_allclose(rows.statistics, sections.statistics, rtol=1e-6)


def test_slabs_in_rows_make_the_same_file(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).normal(size=(5, 11, 7)).astype(np.float32)
    with create_mrc(tmp_path / "a.mrc", volume.shape, voxel_size_angstrom=2.5) as writer:
        for first, stop in ((0, 2), (2, 5)):
            for start in (0, 4, 8):
                writer.write_rows(volume[first:stop, start : start + 4])
    np.testing.assert_array_equal(read_mrc(tmp_path / "a.mrc"), volume)


def write_mixed(path: Path, volume: np.ndarray, *, rows_first: bool) -> None:
    with create_mrc(path, volume.shape, voxel_size_angstrom=1.0) as writer:
        if rows_first:
            writer.write_rows(volume[:, :4])
            writer.write(volume[:1])
        else:
            writer.write(volume[:1])
            writer.write_rows(volume[:, :4])


def write_uneven(path: Path, volume: np.ndarray) -> None:
    with create_mrc(path, volume.shape, voxel_size_angstrom=1.0) as writer:
        writer.write_rows(volume[:1, :4])
        writer.write_rows(volume[:, 4:])


def test_missing_or_mixed_rows_are_refused(tmp_path: Path) -> None:
    volume = np.zeros((2, 6, 3), np.float32)
    with (
        pytest.raises(ValueError, match="takes 6 rows; got 4"),
        create_mrc(tmp_path / "a.mrc", volume.shape, voxel_size_angstrom=1.0) as writer,
    ):
        writer.write_rows(volume[:, :4])
    with pytest.raises(ValueError, match="up to 1 sections"):
        write_mixed(tmp_path / "b.mrc", volume, rows_first=False)
    with pytest.raises(ValueError, match="begun with rows"):
        write_mixed(tmp_path / "c.mrc", volume, rows_first=True)
    with pytest.raises(ValueError, match="1 sections"):
        write_uneven(tmp_path / "d.mrc", volume)
    assert not list(tmp_path.iterdir())
