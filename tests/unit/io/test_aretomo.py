from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from verglas.errors import FileFormatError, UserError
from verglas.io.aretomo import (
    AretomoAlignment,
    read_aln,
    read_aretomo_ctf,
    tilt_series_from_aretomo,
    tilt_series_to_aretomo,
    write_aln,
    write_aretomo_ctf,
)
from verglas.io.imod import ImodAlignment, tilt_series_from_imod
from verglas.model import Optics

HEADER = "# AreTomo Alignment / Priims bprmMn\n# RawSize = 64 48 4\n# NumPatches = 0\n"
NAMES = "# SEC     ROT         GMAG       TX          TY      SMEAN     SFIT    SCALE     BASE     TILT\n"


def row(
    sec: int, rot: float = 85.0, tx: float = 1.0, ty: float = -2.0, tilt: float = 3.0, gmag: float = 1.0
) -> str:
    return f"{sec} {rot} {gmag} {tx} {ty} 1 1 1 0 {tilt}\n"


def read(folder: Path, text: str) -> AretomoAlignment:
    (folder / "a.aln").write_text(text)
    return read_aln(folder / "a.aln")


@pytest.mark.parametrize("name", ["example_v1_2_0.aln", "example_v1_3_0.aln", "test.aln"])
def test_real_alignments_come_back(shared_data, tmp_path, name):
    path = shared_data / "formats" / "aretomo" / name
    write_aln(tmp_path / "out.aln", read_aln(path))
    # One of the files has the line ends of Windows.
    assert (tmp_path / "out.aln").read_bytes() == path.read_bytes().replace(b"\r\n", b"\n")


def test_a_real_ctf_table_comes_back(shared_data, tmp_path):
    folder = shared_data / "formats" / "aretomo"
    write_aretomo_ctf(tmp_path / "out.txt", read_aretomo_ctf(folder / "test_CTF.txt"))
    assert (tmp_path / "out.txt").read_bytes() == (folder / "test_CTF.txt").read_bytes()


def test_what_the_header_tells(shared_data):
    alignment = read_aln(shared_data / "formats" / "aretomo" / "test.aln")
    assert alignment.raw_size == (2032, 2032, 90)
    assert alignment.dark_frames[:, 2].tolist() == [-66, -64.5, 66, 67.5]
    assert alignment.numbers("AlphaOffset") == [(0.0,)]
    assert alignment.sections.tolist() == [0, 1, 2, 3]
    assert alignment.local.shape == (6, 7)
    assert alignment.local[0].tolist() == [0, 0, -558.42, -802, -100.07, 24.43, 1]
    old = read_aln(shared_data / "formats" / "aretomo" / "example_v1_2_0.aln")
    assert old.raw_size is None
    assert old.sections.tolist() == list(range(41))
    assert old.local is None


def test_geometry_is_that_of_the_xf_that_aretomo_writes(shared_data):
    alignment = read_aln(shared_data / "formats" / "aretomo" / "example_v1_3_0.aln")
    optics, shape = Optics(1.62), (4092, 5760)
    series = tilt_series_from_aretomo(alignment, name="a", stack=Path("a.mrc"), optics=optics)
    # AreTomo: A = [[cos, sin], [-sin, cos]] of ROT and d = -A (TX, TY). IMOD's centre is half a pixel away.
    rot = np.deg2rad(alignment.views[:, 1])
    matrices = np.array([[np.cos(rot), np.sin(rot)], [-np.sin(rot), np.cos(rot)]]).transpose(2, 0, 1)
    shifts = -np.einsum("nij,nj->ni", matrices, alignment.views[:, 3:5])
    imod = tilt_series_from_imod(
        ImodAlignment(np.concatenate([matrices, shifts[..., None]], axis=2), alignment.views[:, 9]),
        name="a",
        stack=Path("a.mrc"),
        optics=optics,
        image_shape=shape,
    )
    assert series.image_shape == shape
    assert np.allclose(series.z_rot_deg, imod.z_rot_deg)
    assert np.allclose(series.y_tilt_deg, imod.y_tilt_deg)
    assert np.allclose(series.x_shift_angstrom - 0.81, imod.x_shift_angstrom)
    assert np.allclose(series.y_shift_angstrom - 0.81, imod.y_shift_angstrom)


def test_ctf_of_a_series(tmp_path):
    alignment = read(tmp_path, HEADER + NAMES + row(0) + row(1))
    (tmp_path / "ctf.txt").write_text(
        "# Columns\n1 30000 28000 45 1.5707963 0.1 5 1\n2 31000 29000 50 0 0.1 5 1\n"
    )
    ctf = read_aretomo_ctf(tmp_path / "ctf.txt")
    series = tilt_series_from_aretomo(alignment, name="a", stack=Path("a.mrc"), optics=Optics(2.0), ctf=ctf)
    assert series.defocus_u_angstrom.tolist() == [30000, 31000]
    assert series.defocus_v_angstrom.tolist() == [28000, 29000]
    assert series.phase_shift_deg == pytest.approx([90, 0], abs=1e-4)
    assert series.x_shift_angstrom.tolist() == [2, 2]
    write_aretomo_ctf(tmp_path / "out.txt", ctf)
    assert np.allclose(read_aretomo_ctf(tmp_path / "out.txt").views, ctf.views, atol=1e-2)
    short = replace(ctf, views=ctf.views[:1])
    with pytest.raises(UserError, match="1 lines; expected 2"):
        tilt_series_from_aretomo(alignment, name="a", stack=Path("a.mrc"), optics=Optics(2.0), ctf=short)


def test_series_and_back(tmp_path):
    text = HEADER + "# AlphaOffset = 0\n" + NAMES
    rows = [row(i + 1, 85 + i / 3, 10.12345 * i, -3.3 * i, 3.123 * i - 6) for i in range(4)]
    optics = Optics(1.7)
    series = tilt_series_from_aretomo(
        read(tmp_path, text + "".join(rows)), name="a", stack=Path("a.mrc"), optics=optics
    )
    series = replace(
        series,
        selected=np.array([True, False, True, True]),
        defocus_u_angstrom=np.full(4, 3e4),
        defocus_v_angstrom=np.full(4, 2.9e4),
        defocus_angle_deg=np.arange(4.0),
    )
    alignment, ctf = tilt_series_to_aretomo(series)
    write_aln(tmp_path / "out.aln", alignment)
    again = read_aln(tmp_path / "out.aln")
    assert again.dark_frames.tolist() == [[1, 2, -2.88]]
    back = tilt_series_from_aretomo(again, name="a", stack=Path("a.mrc"), optics=optics, ctf=ctf)
    used = series.take(series.selected)
    for field in ("z_rot_deg", "y_tilt_deg", "x_shift_angstrom", "y_shift_angstrom", "defocus_angle_deg"):
        assert np.allclose(getattr(back, field), getattr(used, field), rtol=0, atol=1e-8)
    assert [image.section for image in back.images] == [0, 2, 3]
    assert back.image_shape == (48, 64)


def test_what_aretomo_cannot_hold(tmp_path):
    series = tilt_series_from_aretomo(
        read(tmp_path, HEADER + NAMES + row(0)), name="a", stack=Path("a.mrc"), optics=Optics(2.0)
    )
    assert tilt_series_to_aretomo(series)[1] is None
    with pytest.raises(UserError, match="x tilts"):
        tilt_series_to_aretomo(replace(series, x_tilt_deg=np.ones(1)))
    with pytest.raises(UserError, match="no selected view"):
        tilt_series_to_aretomo(replace(series, selected=np.zeros(1, bool)))


def test_size_and_magnification(tmp_path):
    old = read(tmp_path, "# AreTomo Alignment\n# 2  0\n" + NAMES + row(0) + row(1))
    with pytest.raises(UserError, match="image_shape"):
        tilt_series_from_aretomo(old, name="a", stack=Path("a.mrc"), optics=Optics(2.0))
    grown = read(tmp_path, HEADER + NAMES + row(0, gmag=1.1))
    with pytest.raises(UserError, match="GMAG"):
        tilt_series_from_aretomo(grown, name="a", stack=Path("a.mrc"), optics=Optics(2.0))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not an alignment\n",
        HEADER,
        HEADER + NAMES,
        HEADER + NAMES + "0 85 1 2 3\n",
        HEADER + NAMES + row(0, tx=float("nan")),
        HEADER + NAMES + row(-1),
        HEADER + NAMES + row(0) + "# Local Alignment\n0 0 1\n",
        HEADER.replace("64", "-64") + NAMES + row(0),
        HEADER.replace("64 48 4", "x y z") + NAMES + row(0),
        HEADER + "# DarkFrame = 1\n" + NAMES + row(0),
    ],
)
def test_hostile_alignments(tmp_path, text):
    with pytest.raises(FileFormatError):
        read(tmp_path, text)


def test_hostile_ctf(tmp_path):
    (tmp_path / "a.txt").write_text("# Columns\n1 2 3\n")
    with pytest.raises(FileFormatError, match="3 values in line 2"):
        read_aretomo_ctf(tmp_path / "a.txt")
