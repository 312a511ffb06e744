"""Movies against tifffile, RELION and electrons placed by hand."""

import pickle
import struct
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from verglas.errors import FileFormatError, MissingFileError, OutOfMemoryError, UserError
from verglas.io.movie import open_movie
from verglas.io.mrc import write_mrc

METADATA = (
    b'<metadata><item name="numberOfFrames">4</item>'
    b'<item name="sensorPixelSize.width" unit="m">7.2e-11</item></metadata>'
)


def place_electrons(frames, side_y, side_x, count, seed=0):
    """Sub-pixel (frame, y, x) of electrons, 4 x 4 places a pixel, at most one a pixel and frame."""
    rng = np.random.default_rng(seed)
    places = []
    for frame in range(frames):
        pixel = rng.choice(side_y * side_x, count, replace=False)
        y = pixel // side_x * 4 + rng.integers(0, 4, count)
        x = pixel % side_x * 4 + rng.integers(0, 4, count)
        places.append(np.stack([np.full(count, frame), y, x]))
    return np.concatenate(places, axis=1)


def render(electrons, shape, step):
    """Count electrons in `(n, y, x)`; `step` is (frames, sub-pixels) of a bin."""
    image = np.zeros(shape, int)
    frame, y, x = electrons[0] // step[0], electrons[1] // step[1], electrons[2] // step[1]
    inside = frame < shape[0]
    np.add.at(image, (frame[inside], y[inside], x[inside]), 1)
    return image


def encode_eer(y, x, side_y, side_x, run_bits):
    """Runs between electrons in scan order, each followed by 2 + 2 bits of sub-pixel from the centre."""
    bits = []

    def put(value, length):
        bits.extend(value >> bit & 1 for bit in range(length))

    def put_run(length):
        while length >= 2**run_bits - 1:
            put(2**run_bits - 1, run_bits)
            length -= 2**run_bits - 1
        put(length, run_bits)

    position = 0
    pixel = y // 4 * side_x + x // 4
    for index in np.argsort(pixel):
        put_run(int(pixel[index]) - position)
        put(int(x[index]) % 4 ^ 2, 2)
        put(int(y[index]) % 4 ^ 2, 2)
        position = int(pixel[index]) + 1
    put_run(side_y * side_x - position)
    return np.packbits(np.array(bits, np.uint8), bitorder="little").tobytes()


def pack_tiff(pages, *, big=True, order="<"):
    """TIFF of pages (tags, strips); the tags 273 and 279 are made from the strips."""
    word, entry = ("Q", 16) if big else ("I", 4)
    out = bytearray(
        struct.pack(
            order + ("2sHHHQ" if big else "2sHI"),
            b"II" if order == "<" else b"MM",
            *((43, 8, 0, 0) if big else (42, 0)),
        )
    )
    link = 8 if big else 4

    def add(data):
        out.extend(bytes(-len(out) % 16))
        out.extend(data)
        return len(out) - len(data)

    for tags, strips in pages:
        offsets = [add(strip) for strip in strips]
        tags = tags | {273: (entry, offsets), 279: (entry, [len(strip) for strip in strips])}
        entries = b""
        for tag, (kind, values) in sorted(tags.items()):
            code = {2: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}[kind]
            data = struct.pack(f"{order}{len(values)}{code}", *values)
            room = struct.calcsize(order + word)
            field = data.ljust(room, b"\0") if len(data) <= room else struct.pack(order + word, add(data))
            entries += struct.pack(order + "HH" + word, tag, kind, len(values)) + field
        count = struct.pack(order + ("Q" if big else "H"), len(tags))
        directory = add(count + entries + bytes(struct.calcsize(order + word)))
        struct.pack_into(order + word, out, link, directory)
        link = len(out) - struct.calcsize(order + word)
    return bytes(out)


def make_tags(side_y, side_x, **changes):
    tags = {
        256: (4, [side_x]),
        257: (4, [side_y]),
        258: (3, [8]),
        259: (3, [1]),
        262: (3, [1]),
        277: (3, [1]),
        278: (4, [side_y]),
    }
    names = {"compression": 259, "bits": 258, "rows": 278, "samples": 277, "predictor": 317, "format": 339}
    return tags | {names[name]: (3, [value]) for name, value in changes.items()}


def write_eer(path, electrons, side_y, side_x, *, compression=65001, metadata=METADATA, with_sum=False):
    pages = []
    tags = make_tags(side_y, side_x, bits=1, compression=compression)
    if compression == 65002:
        tags |= {65007: (3, [8]), 65008: (3, [2]), 65009: (3, [2])}
    if metadata:
        tags |= {65001: (7, list(metadata))}
    if with_sum:
        pages.append((make_tags(side_y, side_x), [bytes(side_y * side_x)]))
        if metadata:
            pages[0][0][65001] = tags[65001]
    run_bits = 7 if compression == 65001 else 8
    for frame in range(electrons[0].max() + 1):
        here = electrons[:, electrons[0] == frame]
        pages.append((tags, [encode_eer(here[1], here[2], side_y, side_x, run_bits)]))
    path.write_bytes(pack_tiff(pages))


@pytest.mark.parametrize("compression", [65000, 65001, 65002])
@pytest.mark.parametrize("upsampling", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 40, 24 * 40])
def test_eer_electrons_land_where_they_were_put(tmp_path, compression, upsampling, count):
    side_y, side_x = 24, 40
    electrons = place_electrons(7, side_y, side_x, count)
    write_eer(tmp_path / "a.eer", electrons, side_y, side_x, compression=compression, with_sum=True)
    movie = open_movie(tmp_path / "a.eer", eer_frames_per_fraction=3, eer_upsampling=upsampling)
    shape = (2, side_y * upsampling, side_x * upsampling)
    assert movie.shape == shape
    assert len(movie) == 2
    assert movie.dtype == np.uint8
    assert movie.pixel_size_angstrom == pytest.approx(0.72 / upsampling)
    expected = render(electrons, shape, (3, 4 // upsampling))
    np.testing.assert_array_equal(movie.frames(), expected)
    np.testing.assert_array_equal(movie.frames(1, 2), expected[1:])
    assert movie.frames().dtype == np.uint8


def test_eer_sums_of_many_frames_do_not_overflow(tmp_path):
    electrons = np.stack([np.arange(300), np.full(300, 13), np.full(300, 5)])
    write_eer(tmp_path / "a.eer", electrons, 8, 8, metadata=b"")
    movie = open_movie(tmp_path / "a.eer", eer_frames_per_fraction=300)
    assert movie.pixel_size_angstrom is None
    assert movie.frames()[0, 3, 1] == 300
    assert movie.frames().sum() == 300


def test_eer_needs_parameters_that_can_be(tmp_path):
    write_eer(tmp_path / "a.eer", place_electrons(4, 8, 8, 5), 8, 8)
    with pytest.raises(UserError, match="holds 4 raw frames; expected `eer_frames_per_fraction`"):
        open_movie(tmp_path / "a.eer")
    for wrong in (0, 5, -1):
        with pytest.raises(UserError, match=rf"between 1 and 4, the raw frames of .*; got {wrong}"):
            open_movie(tmp_path / "a.eer", eer_frames_per_fraction=wrong)
    with pytest.raises(UserError, match="`eer_upsampling` must be one of 1, 2, 4; got 3"):
        open_movie(tmp_path / "a.eer", eer_frames_per_fraction=2, eer_upsampling=3)


def test_damaged_eer_frames_are_named(tmp_path):
    long_run = np.packbits(np.ones(8 * 64, np.uint8)).tobytes()
    tags = make_tags(8, 8, bits=1, compression=65001)
    (tmp_path / "a.eer").write_bytes(pack_tiff([(tags, [bytes([64, 0])]), (tags, [long_run])]))
    movie = open_movie(tmp_path / "a.eer", eer_frames_per_fraction=1)
    assert movie.frames(0, 1).sum() == 0
    with pytest.raises(FileFormatError, match=r"raw frame 2 of EER movie .*a\.eer' is damaged"):
        movie.frames(1, 2)


@pytest.mark.relion
@pytest.mark.parametrize("upsampling", [1, 2])
def test_relion_renders_the_same_eer_and_writes_it_upside_down(tmp_path, relion, upsampling):
    electrons = place_electrons(3, 4096, 4096, 200)
    write_eer(tmp_path / "a.eer", electrons, 4096, 4096)
    relion(
        "relion_convert_to_tiff",
        "--i",
        "a.eer",
        "--o",
        "tiff/",
        "--eer_grouping",
        2,
        "--eer_upsampling",
        upsampling,
    )
    ours = open_movie(tmp_path / "a.eer", eer_frames_per_fraction=2, eer_upsampling=upsampling)
    theirs = open_movie(tmp_path / "tiff" / "a.tif")
    assert ours.shape == theirs.shape == (1, 4096 * upsampling, 4096 * upsampling)
    frame = ours.frames()
    assert frame.sum() == 400
    assert np.array_equal(frame, theirs.frames())
    assert np.array_equal(frame[:, ::-1], tifffile.imread(tmp_path / "tiff" / "a.tif")[None])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_tiff_frames_are_those_of_tifffile_upside_down(tmp_path, dtype, compression, byteorder, bigtiff):
    data = np.random.default_rng(0).integers(0, 100, (4, 13, 17)).astype(dtype)
    tifffile.imwrite(
        tmp_path / "a.tif",
        data,
        photometric="minisblack",
        compression=compression,
        byteorder=byteorder,
        bigtiff=bigtiff,
        rowsperstrip=5,
        metadata=None,
        predictor=compression is not None and dtype != "float32",
    )
    movie = open_movie(tmp_path / "a.tif")
    assert movie.shape == data.shape
    assert movie.dtype == np.dtype(dtype)
    assert movie.pixel_size_angstrom is None
    np.testing.assert_array_equal(movie.frames(), data[:, ::-1])
    np.testing.assert_array_equal(movie.frames(1, 3), data[1:3, ::-1])
    assert movie.frames(2, 2).shape == (0, 13, 17)


@pytest.mark.relion
@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_relion_reads_tiff_the_same_way_up_and_the_same_pixel_size(tmp_path, relion, compression):
    data = np.random.default_rng(0).integers(0, 250, (3, 12, 16)).astype(np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tif",
        data,
        photometric="minisblack",
        compression=compression,
        resolution=(1e8 / 1.5, 1e8 / 1.5),
        resolutionunit="CENTIMETER",
    )
    relion("relion_image_handler", "--i", "a.tif", "--o", "b.mrcs")
    ours, theirs = open_movie(tmp_path / "a.tif"), open_movie(tmp_path / "b.mrcs")
    np.testing.assert_array_equal(ours.frames(), theirs.frames())
    assert ours.pixel_size_angstrom == pytest.approx(1.5)
    assert theirs.pixel_size_angstrom == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("unit", "per_unit", "expected"), [("INCH", 2.54e8 / 0.83, 0.83), ("INCH", 72, None), ("NONE", 1e8, None)]
)
def test_pixel_size_of_tiff_needs_a_unit_and_a_plausible_number(tmp_path, unit, per_unit, expected):
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((4, 4), np.uint8), resolution=(per_unit, per_unit), resolutionunit=unit
    )
    assert open_movie(tmp_path / "a.tif").pixel_size_angstrom == (
        expected and pytest.approx(expected, rel=1e-5)
    )


def test_real_tiff_of_imagej(shared_data):
    path = shared_data / "microtubule/13pf_MT.tif"
    movie = open_movie(path)
    assert (movie.shape, movie.dtype) == ((36, 206, 94), np.uint8)
    np.testing.assert_array_equal(movie.frames(), tifffile.imread(path)[:, ::-1])


def test_mrc_movies_come_as_stored(tmp_path, shared_data):
    data = np.random.default_rng(0).integers(-9, 100, (5, 6, 7)).astype(np.int8)
    write_mrc(tmp_path / "a.mrc", data, voxel_size_angstrom=0.81, dtype=np.int8, is_stack=True)
    movie = open_movie(tmp_path / "a.mrc")
    assert (movie.shape, movie.dtype) == (data.shape, np.int8)
    assert movie.pixel_size_angstrom == pytest.approx(0.81)
    np.testing.assert_array_equal(movie.frames(), data)
    np.testing.assert_array_equal(movie.frames(3), data[3:])
    real = open_movie(shared_data / "tilt_series_empiar10499/00254.stack.mrc")
    assert real.shape == (41, 630, 652)
    assert real.frames(40, 41).std() > 0


def test_formats_are_told_by_content_and_movies_travel(tmp_path):
    tifffile.imwrite(tmp_path / "a.mrc", np.arange(12, dtype=np.uint8).reshape(3, 4))
    movie = pickle.loads(pickle.dumps(open_movie(tmp_path / "a.mrc")))
    assert movie.frames().tolist() == [[[8, 9, 10, 11], [4, 5, 6, 7], [0, 1, 2, 3]]]


def test_one_thread_and_many_give_the_same(tmp_path, monkeypatch):
    write_eer(tmp_path / "a.eer", place_electrons(6, 16, 16, 50), 16, 16)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = open_movie(tmp_path / "a.eer", eer_frames_per_fraction=1).frames()
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    np.testing.assert_array_equal(open_movie(tmp_path / "a.eer", eer_frames_per_fraction=1).frames(), one)


def test_ranges_outside_and_frames_beyond_memory_are_refused(tmp_path, monkeypatch):
    write_mrc(tmp_path / "a.mrc", np.zeros((3, 4, 4)), voxel_size_angstrom=1.0, is_stack=True)
    movie = open_movie(tmp_path / "a.mrc")
    for start, stop in ((-1, 2), (0, 4), (2, 1)):
        with pytest.raises(UserError, match=f"frames {start} to {stop} are outside the 3"):
            movie.frames(start, stop)
    monkeypatch.setattr("verglas.io.movie.available_memory_bytes", lambda: 100)
    with pytest.raises(OutOfMemoryError, match=r"frames 0 to 3 of .* GB of memory are free"):
        movie.frames()
    assert movie.frames(0, 1).shape == (1, 4, 4)


TAGS = make_tags(4, 6)
BOMB = zlib.compress(bytes(10**7))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            pack_tiff([(TAGS, [bytes(24)]), (make_tags(4, 5), [bytes(20)])]),
            r"different kinds: frame 1 is \(y, x\) = \(4, 6\) uint8, frame 2 is \(y, x\) = \(4, 5\)",
        ),
        (
            pack_tiff([(make_tags(10**5, 10**5), [bytes(24)])]),
            r"claims \(y, x\) = \(100000, 100000\), 10000000000 bytes, but its 24 bytes",
        ),
        (pack_tiff([(make_tags(60000, 60000, compression=5), [bytes(24)])]), "cannot hold that"),
        (
            pack_tiff([(make_tags(60000, 60000, compression=8), [BOMB * 200])]),
            "expected up to 1073741824 pixels",
        ),
        (
            pack_tiff([(make_tags(60000, 60000, compression=65001, bits=1), [bytes(24)])]),
            "expected up to 1073741824 pixels",
        ),
        (
            pack_tiff([(make_tags(4, 6, compression=7), [bytes(24)])]),
            "compression 7; expected none, LZW or deflate",
        ),
        (pack_tiff([(make_tags(4, 6, bits=4), [bytes(24)])]), "has 4 bits a pixel"),
        (pack_tiff([(make_tags(4, 6, predictor=3), [bytes(24)])]), "predictor 3"),
        (pack_tiff([(make_tags(4, 6, rows=2), [bytes(24)])]), "has 1 strips; expected 2"),
        (pack_tiff([(make_tags(0, 6), [bytes(24)])]), "frame 1"),
        (pack_tiff([]), "holds no frames"),
        (pack_tiff([(TAGS, [bytes(24)])])[:-30], "damaged or cut short"),
        (pack_tiff([(TAGS, [bytes(24)])], big=False, order=">")[:-3], "damaged or cut short"),
        (b"II*\0", "damaged or cut short"),
        (b"II*\0\x05", "damaged or cut short"),
        (b"II*\0\xff\xff\xff\x7f" + bytes(100), "points to byte 2147483647, but the file holds 108 bytes"),
        (b"", "is empty"),
        (b"neither of them", "holds 15 bytes"),
    ],
)
def test_broken_movies_are_named_in_one_sentence(tmp_path, raw, message):
    (tmp_path / "bad.tif").write_bytes(raw)
    with pytest.raises(FileFormatError, match=message) as raised:
        open_movie(tmp_path / "bad.tif", eer_frames_per_fraction=1)
    assert "bad.tif" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_data_outside_the_file_and_circles_are_found(tmp_path):
    raw = bytearray(pack_tiff([(TAGS, [bytes(24)]), (TAGS, [bytes(24)])]))
    first = struct.unpack_from("<Q", raw, 8)[0]
    last_link = len(raw) - 8
    struct.pack_into("<Q", raw, last_link, first)
    (tmp_path / "a.tif").write_bytes(raw)
    with pytest.raises(FileFormatError, match="its directories form a circle"):
        open_movie(tmp_path / "a.tif")
    struct.pack_into("<Q", raw, last_link, 0)
    entry = raw.index(struct.pack("<HHQ", 273, 16, 1), first)
    struct.pack_into("<Q", raw, entry + 12, len(raw) - 5)
    (tmp_path / "a.tif").write_bytes(raw)
    with pytest.raises(FileFormatError, match=r"frame 1 of movie .* is cut short: its data end at byte"):
        open_movie(tmp_path / "a.tif")


def test_a_movie_cut_short_does_not_pass_for_a_shorter_one(tmp_path):
    data = np.random.default_rng(0).integers(0, 9, (5, 64, 64)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", data, compression="lzw", photometric="minisblack", metadata=None)
    raw = (tmp_path / "a.tif").read_bytes()
    for length in range(1, len(raw), 997):
        (tmp_path / "a.tif").write_bytes(raw[:length])
        with pytest.raises(FileFormatError):
            open_movie(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", ["lzw", "zlib"])
def test_corrupt_strips_are_named(tmp_path, compression):
    data = np.random.default_rng(0).integers(0, 9, (3, 64, 64)).astype(np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tif", data, compression=compression, photometric="minisblack", metadata=None
    )
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        offset, size = tiff.pages[1].dataoffsets[0], tiff.pages[1].databytecounts[0]
    raw = bytearray((tmp_path / "a.tif").read_bytes())
    raw[offset : offset + size] = bytes(size)
    (tmp_path / "a.tif").write_bytes(raw)
    movie = open_movie(tmp_path / "a.tif")
    assert movie.frames(0, 1).shape == (1, 64, 64)
    with pytest.raises(FileFormatError, match=r"frame 2 of movie .*a\.tif' is damaged"):
        movie.frames()


def test_strips_that_unpack_to_less_or_much_more_are_refused(tmp_path):
    tags = make_tags(4, 6, compression=8)
    (tmp_path / "a.tif").write_bytes(pack_tiff([(tags, [zlib.compress(bytes(20))])]))
    with pytest.raises(FileFormatError, match="a strip holds 20 bytes; expected 24"):
        open_movie(tmp_path / "a.tif").frames()
    (tmp_path / "a.tif").write_bytes(pack_tiff([(tags, [BOMB])]))
    with pytest.raises(FileFormatError, match=r"frame 1 of movie .* is damaged"):
        open_movie(tmp_path / "a.tif").frames()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(4, 10**6), st.integers(0, 255)), min_size=1, max_size=6))
@example(changes=[(2810, 6)])  # the place of the data becomes a signed number below 0
def test_random_bytes_in_a_tiff_never_do_worse_than_a_sentence(tmp_path, changes):
    raw = bytearray(pack_tiff([(make_tags(4, 6, compression=8), [zlib.compress(bytes(24))])] * 2, big=False))
    for place, value in changes:
        raw[4 + place % (len(raw) - 4)] = value
    (tmp_path / "a.tif").write_bytes(raw)
    try:
        shape = open_movie(tmp_path / "a.tif", eer_frames_per_fraction=1).frames().shape
    except (UserError, OutOfMemoryError) as error:
        shape = ("\n" not in str(error), 0, 0)
    assert len(shape) == 3
    assert shape[0]


def test_folder_and_missing_file_are_refused(tmp_path):
    with pytest.raises(FileFormatError, match=r"movie .* is a folder"):
        open_movie(tmp_path)
    with pytest.raises(MissingFileError, match=r"movie .* does not exist"):
        open_movie(tmp_path / "none.eer")


def test_complex_mrc_is_no_movie(tmp_path):
    write_mrc(tmp_path / "a.mrc", np.zeros((2, 2, 2)), voxel_size_angstrom=1.0, dtype=np.complex64)
    with pytest.raises(FileFormatError, match="holds complex numbers"):
        open_movie(tmp_path / "a.mrc")
