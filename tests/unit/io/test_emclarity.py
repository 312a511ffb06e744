import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from verglas.errors import FileFormatError, UserError
from verglas.io.emclarity import (
    EmclarityRegion,
    read_ctf_table,
    read_points,
    read_regions,
    region_geometry,
    tilt_series_from_emclarity,
    tilt_series_to_emclarity,
    write_ctf_table,
    write_regions,
)
from verglas.io.emclarity_motives import (
    particles_from_emclarity,
    particles_to_emclarity,
    read_motives,
    write_motives,
)
from verglas.io.emclarity_parameters import evaluate, read_parameters, write_parameters
from verglas.io.imod import read_xf
from verglas.io.imod_model import list_points, read_imod_model
from verglas.model import Particles
from verglas.units import electron_wavelength_angstrom

REGION = EmclarityRegion(width=100, slice_start=11, slice_end=90, thickness=40, shift_x=-30, shift_z=7)


@pytest.fixture
def folder(shared_data: Path) -> Path:
    return shared_data / "formats" / "emclarity"


@pytest.fixture
def table(folder: Path) -> np.ndarray:
    return read_ctf_table(folder / "riboNew07_ali1_ctf.tlt")


def test_a_real_table_comes_back_byte_for_byte(folder, tmp_path, table):
    write_ctf_table(tmp_path / "out.tlt", table)
    assert (tmp_path / "out.tlt").read_bytes() == (folder / "riboNew07_ali1_ctf.tlt").read_bytes()


def test_other_real_files(folder):
    assert len(read_xf(folder / "riboNew07.xf")) == 72
    points, members = list_points(read_imod_model(folder / "riboNew07.erase"))
    # The same seven beads in 41 views, on images binned by about nine.
    assert len(points) == len(read_points(folder / "riboNew07.erase2")) == 7 * 41
    assert members[:, 1].max() == 6


def test_units_of_the_ctf_table(table):
    series = tilt_series_from_emclarity(table, name="ribo", stack=Path("ribo.fixed"))
    assert series.pixel_size_angstrom == pytest.approx(2.17)
    assert series.optics.voltage_kv == 300
    assert series.optics.cs_mm == pytest.approx(2.7)
    assert series.optics.amplitude_contrast == pytest.approx(0.085)
    # Row of view 1: mean defocus -5.040734e-06 m, half astigmatism 3e-8 m, -1.204277 rad.
    assert series.images[0].section == 0
    assert series.defocus_u_angstrom[0] == pytest.approx(50407.34 + 300)
    assert series.defocus_v_angstrom[0] == pytest.approx(50407.34 - 300)
    # In the table it is the angle in the aligned stack, whose images are turned back by the axis angle.
    turned = (math.degrees(-1.204277) + series.z_rot_deg[0] + 90) % 180 - 90
    assert series.defocus_angle_deg[0] == pytest.approx(turned)
    assert series.y_tilt_deg[0] == 60.46
    assert series.image_shape == (3710, 3838)
    # 60 e/Å2 over 41 views of the same dose.
    assert series.exposure_e_per_a2 == pytest.approx(np.full(41, 60 / 41), abs=1e-4)
    assert series.pre_exposure_e_per_a2.min() == 0


def test_wavelength_is_ours_too():
    # The column of a 300 kV series, 1.968697e-12 m, in the relativistic formula of verglas.units.
    assert electron_wavelength_angstrom(300.0) == pytest.approx(1.968697e-2, rel=1e-4)


def test_transform_of_the_ctf_table_is_row_major(table):
    series = tilt_series_from_emclarity(table, name="ribo", stack=Path("ribo.fixed"))
    first = table[table[:, 0] == 1][0]
    # a11 a12 a21 a22 = cos, sin, -sin, cos of a turn by atan2(0.0017016, 0.999): inv(A) turns by as much.
    assert first[7] > 0 > first[8]
    assert series.z_rot_deg[0] == pytest.approx(
        math.degrees(math.atan2(first[7] - first[8], first[6] + first[9]))
    )
    raw = -np.linalg.inv(first[6:10].reshape(2, 2)) @ first[1:3] - 0.5
    assert series.x_shift_angstrom[0] / 2.17 == pytest.approx(raw[0])
    assert series.y_shift_angstrom[0] / 2.17 == pytest.approx(raw[1])


def test_ctf_table_and_back(table, tmp_path):
    series = tilt_series_from_emclarity(table, name="ribo", stack=Path("ribo.fixed"))
    back = tilt_series_to_emclarity(series)
    assert back.shape == (41, 23)
    assert np.allclose(back[:, :22], table, rtol=1e-9, atol=1e-15)
    assert back[:, 22].tolist() == table[:, 0].tolist()
    write_ctf_table(tmp_path / "out.tlt", back)
    assert np.array_equal(read_ctf_table(tmp_path / "out.tlt")[:, :22], table)
    again = tilt_series_from_emclarity(
        read_ctf_table(tmp_path / "out.tlt"), name="ribo", stack=Path("ribo.fixed")
    )
    assert np.allclose(again.x_shift_angstrom, series.x_shift_angstrom)


def test_views_that_were_skipped_keep_their_sections(table):
    series = tilt_series_from_emclarity(table, name="ribo", stack=Path("ribo.fixed"))
    chosen = np.ones(41, bool)
    chosen[[3, 40]] = False
    part = tilt_series_to_emclarity(replace(series, selected=chosen))
    assert sorted(part[:, 0]) == list(range(1, 40))
    back = tilt_series_from_emclarity(part, name="ribo", stack=Path("ribo.fixed"))
    assert [image.section for image in back.images] == [i for i in range(41) if i not in {3, 40}]


def test_what_a_ctf_table_cannot_hold(table):
    series = tilt_series_from_emclarity(table, name="ribo", stack=Path("ribo.fixed"))
    with pytest.raises(UserError, match="x tilts"):
        tilt_series_to_emclarity(replace(series, x_tilt_deg=np.ones(41)))
    with pytest.raises(UserError, match="defocus of a view"):
        tilt_series_to_emclarity(replace(series, defocus_u_angstrom=np.full(41, np.nan)))
    with pytest.raises(UserError, match="exposure of a view"):
        tilt_series_to_emclarity(replace(series, exposure_e_per_a2=np.full(41, np.nan)))
    renumbered = table.copy()
    renumbered[0, 0] = 1e20
    with pytest.raises(UserError, match="whole number"):
        tilt_series_from_emclarity(renumbered, name="ribo", stack=Path("ribo.fixed"))
    table[:, 17] = -1
    with pytest.raises(UserError, match="wavelength"):
        tilt_series_from_emclarity(table, name="ribo", stack=Path("ribo.fixed"))


@pytest.mark.parametrize("text", ["", "1 2 3\n", " ".join(["nan"] * 23) + "\n", " ".join(["1"] * 24) + "\n"])
def test_hostile_ctf_tables(tmp_path, text):
    (tmp_path / "a_ctf.tlt").write_text(text)
    with pytest.raises(FileFormatError, match=r"a_ctf\.tlt"):
        read_ctf_table(tmp_path / "a_ctf.tlt")


def test_regions_round_trip(tmp_path):
    regions = (REGION, EmclarityRegion(64, 0, 63, 32, 1.5, -2))
    path = write_regions(tmp_path, "TS_01", regions)
    assert path.name == "TS_01_recon.coords"
    assert path.read_text().split()[:8] == ["TS_01", "2", "100", "11", "90", "40", "-30", "7"]
    assert read_regions(path) == ("TS_01", regions)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "other\n1\n1\n1\n1\n1\n1\n1\n",
        "a\n2\n1\n1\n1\n1\n1\n1\n",
        "a\n-1\n",
        "a\n0\n",
        "a\n1e9\n1\n1\n1\n1\n1\n1\n",
        "a\n1\n-5\n1\n1\n1\n1\n1\n",
        "a\n1\n5\n9\n1\n1\n1\n1\n",
        "a\n1\n5.5\n1\n9\n1\n1\n1\n",
        "a\n1\nx\n1\n1\n1\n1\n1\n",
    ],
)
def test_hostile_regions(tmp_path, text):
    (tmp_path / "a_recon.coords").write_text(text)
    with pytest.raises(FileFormatError, match="emClarity coordinates"):
        read_regions(tmp_path / "a_recon.coords")


def test_geometry_of_a_region():
    # Slices 11 to 90 counted from 1 of 100 are the middle 80, so their centre voxel is that of the image.
    assert region_geometry(REGION, 100).tolist() == [[100, 80, 40], [30, 0, 7]]
    assert region_geometry(replace(REGION, slice_start=1, slice_end=50), 100)[:, 1].tolist() == [50, -25]
    assert region_geometry(replace(REGION, slice_start=-20, slice_end=130), 100)[:, 1].tolist() == [100, 0]


def make_motives(triples: np.ndarray) -> np.ndarray:
    count = len(triples)
    motives = np.zeros((count, 26))
    motives[:, 0] = np.linspace(5, 9, count)
    motives[:, 1], motives[:, 3], motives[:, 4:6], motives[:, 25] = 6, np.arange(1, count + 1), 1, 1
    motives[:, 6] = 1 + np.arange(count) % 2
    motives[:, 8] = 3
    motives[:, 10:13] = np.random.default_rng(0).uniform(1, 90, (count, 3))
    motives[:, 13:16] = triples
    # scipy: capital letters are turns about the axes as they move, which is Rz(e1) Rx(e2) Rz(e3) from the left.
    matrices = Rotation.from_euler("ZXZ", triples, degrees=True).as_matrix()
    motives[:, 16:25] = matrices.transpose(0, 2, 1).reshape(count, 9)
    return motives


def test_angles_and_places_of_motives():
    triples = np.random.default_rng(1).uniform([-180, 0, -180], [180, 180, 180], (20, 3))
    motives = make_motives(triples)
    geometry = region_geometry(REGION, 100)
    particles = particles_from_emclarity(motives, geometry, pixel_size_angstrom=2.5, tomogram_name="TS_01")
    theirs = Rotation.from_euler("ZXZ", triples, degrees=True).as_matrix()
    ours = Rotation.from_euler("ZYZ", particles.angles_deg, degrees=True).as_matrix()
    assert np.abs(ours - theirs).max() < 1e-12
    # The axis of a particle is R z, by hand: (sin e1 sin e2, -cos e1 sin e2, cos e2).
    e1, e2 = np.deg2rad(triples[:, 0]), np.deg2rad(triples[:, 1])
    axis = np.stack([np.sin(e1) * np.sin(e2), -np.cos(e1) * np.sin(e2), np.cos(e2)], axis=1)
    assert np.abs(ours[:, :, 2] - axis).max() < 1e-12
    # Voxel n // 2, which is number n // 2 + 1, of 100 x 80 x 40 is the region's place.
    centred = make_motives(triples[:1])
    centred[0, 10:13] = [51, 41, 21]
    place = particles_from_emclarity(centred, geometry, pixel_size_angstrom=2.5, tomogram_name="TS_01")
    assert place.positions_angstrom.tolist() == [[75, 0, 17.5]]
    assert particles.half_set.tolist() == [1, 2] * 10
    assert particles.score[0] == 5


def test_motives_and_back(tmp_path):
    triples = np.random.default_rng(1).uniform([-180, 0, -180], [180, 180, 180], (20, 3))
    motives = make_motives(triples)
    motives[3, [2, 25]] = -9999
    write_motives(tmp_path / "a.csv", motives)
    read = read_motives(tmp_path / "a.csv")
    assert np.abs(read - motives).max() < 1e-7
    assert (tmp_path / "a.csv").read_text().split()[:8] == ["5", "6", "0", "1", "1", "1", "1", "0"]
    geometry = region_geometry(REGION, 100)
    particles = particles_from_emclarity(motives, geometry, pixel_size_angstrom=2.5, tomogram_name="TS_01")
    back = particles_to_emclarity(particles, geometry, pixel_size_angstrom=2.5)
    assert np.abs(back - motives).max() < 1e-10
    assert len(particles) == 20


def test_matrix_of_a_motive_outweighs_its_triple():
    motives = make_motives(np.array([[10.0, 20, 30], [50, 0, 40], [70, 180, 0]]))
    stale = motives.copy()
    stale[:, 13:16] = 1.0
    geometry = region_geometry(REGION, 100)
    ours = [
        Rotation.from_euler(
            "ZYZ",
            particles_from_emclarity(m, geometry, pixel_size_angstrom=1.0, tomogram_name="a").angles_deg,
            degrees=True,
        ).as_matrix()
        for m in (motives, stale)
    ]
    assert np.abs(ours[0] - ours[1]).max() < 1e-9
    # Without a matrix, as before emClarity fills it in, the triple is all there is.
    motives[:, 16:25] = 0
    bare = particles_from_emclarity(motives, geometry, pixel_size_angstrom=1.0, tomogram_name="a")
    assert bare.angles_deg[0].tolist() == [-80, 20, 120]


def test_short_motives_and_new_particles():
    short = np.array([[51.0, 41, 21, 10, 20, 30]])
    geometry = region_geometry(REGION, 100)
    particles = particles_from_emclarity(short, geometry, pixel_size_angstrom=2.0, tomogram_name="a")
    assert particles.half_set.tolist() == [0]
    assert np.isnan(particles.score[0])
    fresh = particles_to_emclarity(
        Particles(
            tomogram_names=particles.tomogram_names,
            positions_angstrom=particles.positions_angstrom,
            angles_deg=particles.angles_deg,
            half_set=particles.half_set,
            score=particles.score,
            extra=pd.DataFrame(),
        ),
        geometry,
        pixel_size_angstrom=2.0,
    )[0]
    assert fresh[:10].tolist() == [0, 1, 0, 1, 1, 1, 1, 1, 5, 0]
    assert fresh[10:16] == pytest.approx(short[0])
    assert fresh[25] == 1


def test_hostile_motives(tmp_path):
    (tmp_path / "a.csv").write_text(" ".join(["1"] * 25) + "\n")
    with pytest.raises(FileFormatError, match="25 values in line 1"):
        read_motives(tmp_path / "a.csv")
    motives = make_motives(np.zeros((2, 3)))
    motives[0, 6] = 7
    with pytest.raises(UserError, match="half set"):
        particles_from_emclarity(
            motives, region_geometry(REGION, 100), pixel_size_angstrom=1.0, tomogram_name="a"
        )


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2.17e-10", 2.17e-10),
        ("-2^2", -4.0),
        ("2^-1", 0.5),
        ("2^3^2", 64.0),
        ("(1+2)*3/4", 2.25),
        ("2*-3", -6.0),
        ("true", 1.0),
        ("[1:3; 1.*ones(1,3)]", [[1, 2, 3], [1, 1, 1]]),
        ("[0; 2.*ones(2,1)]", [[0], [2], [2]]),
        ("[180,15,180,12]", [180, 15, 180, 12]),
        ("[1 -2]", [1, -2]),
        ("[1 - 2]", -1.0),
        ("[1, 2; 3 4]'", [[1, 3], [2, 4]]),
        ("0:0.5:1.5", [0, 0.5, 1, 1.5]),
        ("3:-1:1", [3, 2, 1]),
        ("1:0", []),
        ("[]", []),
        ("1./[2,4]", [0.5, 0.25]),
        ("[1,2].*[3,4]", [3, 8]),
        ("[1,2]*[3;4]", 11.0),
        ("[1,2].^2", [1, 4]),
        ("zeros(2)", [[0, 0], [0, 0]]),
        ("[[1,2],3]", [1, 2, 3]),
        ("2*[1,2]+1", [3, 5]),
    ],
)
def test_expressions(expression, value):
    result = evaluate(expression)
    assert np.array_equal(result, value)
    assert isinstance(result, float) == isinstance(value, float)


@pytest.mark.parametrize(
    "expression",
    [
        *(
            "__import__('os')",
            "exp(1)",
            "a",
            "1+",
            "(1",
            "[1,2",
            "1 2",
            "'",
            "1..2",
            "1:2:3:4",
            "0/0",
            "",
            "1=2",
        ),
        *(
            "[1,2;3]",
            "[1,2]+[1,2,3]",
            "[1,2]*[3,4]",
            "[1,2]^2",
            "1/[1,2]",
            "ones(1,2,3)",
            "ones(-1)",
            "ones(0.5)",
        ),
        *(
            "1:1e9",
            "ones(1e9)",
            "ones(1e5,1e5)",
            "[1:1e6,1:1e6]",
            "1:inf",
            "(" * 60 + "1" + ")" * 60,
            "1" * 30_000,
        ),
        *("-" * 500 + "1", "[" * 500, "1e5:[1,2]", "1::2"),
    ],
)
def test_hostile_expressions(expression):
    with pytest.raises(UserError):
        evaluate(expression)


@given(st.text(alphabet="0123456789.+-*/^:;,'()[] eonszr", max_size=30))
def test_any_expression_is_a_value_or_a_user_error(expression):
    try:
        value = evaluate(expression)
    except UserError:
        return
    assert not np.isnan(value).any()


@given(
    st.recursive(
        st.integers(0, 9).map(str),
        lambda s: st.tuples(s, st.sampled_from("+-*"), s).map(lambda t: f"({''.join(t)})"),
    )
)
def test_arithmetic_is_that_of_python(expression):
    # Only digits, brackets and + - * come from this strategy.
    assert evaluate(expression) == eval(expression)


PARAMETERS = """% a comment
subTomoMeta=ribo_test
PIXEL_SIZE=2.17e-10
nGPUs=4;
Raw_classes_odd=[0; 1.*ones(2,1)]
Tmp_angleSearch=[180,15,180,12]   % degrees

symmetry=C1
Ali_mType=cylinder
fastScratchDisk=
"""


def test_parameter_file(tmp_path):
    path = tmp_path / "param0.m"
    path.write_text(PARAMETERS)
    parameters = read_parameters(path)
    assert list(parameters)[:3] == ["subTomoMeta", "PIXEL_SIZE", "nGPUs"]
    assert parameters["subTomoMeta"] == "ribo_test"
    assert parameters["PIXEL_SIZE"] == 2.17e-10
    assert parameters["nGPUs"] == 4.0
    assert parameters["Raw_classes_odd"].tolist() == [[0], [1], [1]]
    assert parameters["Tmp_angleSearch"].tolist() == [180, 15, 180, 12]
    assert parameters["fastScratchDisk"] == ""
    write_parameters(tmp_path / "out.m", parameters)
    again = read_parameters(tmp_path / "out.m")
    assert list(again) == list(parameters)
    assert all(np.array_equal(again[name], parameters[name]) for name in parameters)


def test_every_bad_line_has_its_sentence(tmp_path):
    path = tmp_path / "bad.m"
    path.write_text("nGPUs=4\nno sign\nCs=1=2\nCs=__import__('os').system('true')\nnGPUs=5\n2x=1\nVOLTAGE=\n")
    with pytest.raises(FileFormatError) as error:
        read_parameters(path)
    sentences = str(error.value).splitlines()
    assert [sentence.split()[1] for sentence in sentences] == ["2", "3", "4", "5", "6", "7"]
    assert "second time" in sentences[3]
