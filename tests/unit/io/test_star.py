"""STAR tables: the dialect, exact round trips, one-sentence errors, and RELION as the reader."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verglas.errors import FileFormatError, MissingFileError, UserError
from verglas.io.star import get_table, read_star, read_table, require_columns, write_star


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "a.star"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_read_loops_and_pairs_in_order(tmp_path: Path) -> None:
    blocks = read_star(
        write(
            tmp_path,
            "# top\n\ndata_general\n\n_rlnTomoSubTomosAre2DStacks   1 \n_rlnVoltage 300.5 # kV\n"
            "_rlnTomoName 007\n\n"
            "# version 30001\ndata_optics\nloop_ \n_rlnOpticsGroup #1 \n_rlnOpticsGroupName #2\n\n"
            "  1   first   \n\n  2   'second group' \n"
            "\ndata_particles\r\n\r\nloop_\r\n_rlnTomoName\r\n_rlnAngleRot\r\n0012 1.5\r\n13 -2\r\n",
        )
    )
    assert list(blocks) == ["general", "optics", "particles"]
    assert blocks["general"] == {"rlnTomoSubTomosAre2DStacks": 1, "rlnVoltage": 300.5, "rlnTomoName": "007"}
    assert isinstance(blocks["general"]["rlnTomoSubTomosAre2DStacks"], int)
    optics, particles = blocks["optics"], blocks["particles"]
    assert isinstance(optics, pd.DataFrame)
    assert isinstance(particles, pd.DataFrame)
    assert optics["rlnOpticsGroup"].tolist() == [1, 2]
    assert optics["rlnOpticsGroup"].dtype == np.int64
    assert optics["rlnOpticsGroupName"].tolist() == ["first", "second group"]
    assert particles["rlnTomoName"].tolist() == ["0012", "13"]
    assert particles["rlnAngleRot"].tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"a b"', "a b"),
        ("'a b'", "a b"),
        ('""', ""),
        ("''", ""),
        ("it's", "it's"),
        ("'it's here'", "it's here"),
        ("'say \"hi\" now'", 'say "hi" now'),
        ("a#1.mrc", "a#1.mrc"),
        ('"a b" # comment', "a b"),
        ("[1,0,0,-2.5]", "[1,0,0,-2.5]"),
        ("NA", "NA"),
        ("None", "None"),
        ("True", "True"),
        ("1_000", "1_000"),
    ],
)
def test_read_text_values(tmp_path: Path, text: str, expected: str) -> None:
    table = read_table(
        write(
            tmp_path,
            f"data_\nloop_\n_x\n_text\n_y\n1 {text} 2\n3 plain 4\n".replace(" # comment 2", " 2 # comment"),
        )
    )
    assert table["text"].tolist() == [expected, "plain"]
    assert table["y"].tolist() == [2, 4]
    assert table["y"].dtype == np.int64


def test_read_comment_lines_and_rows_inside_a_body(tmp_path: Path) -> None:
    table = read_table(
        write(tmp_path, "data_a\nloop_\n# why\n_x #1\n_y #2\n1 2\n  # between 7 8\n\n3 4 # end\n")
    )
    assert table.to_dict("list") == {"x": [1, 3], "y": [2, 4]}


def test_read_not_a_number_and_infinity(tmp_path: Path) -> None:
    table = read_table(
        write(tmp_path, "data_\nloop_\n_x\n_y\n_rlnTomoName\n1 nan nan\n2.5 -nan a\n-inf NaN b\n")
    )
    assert table["x"].tolist() == [1.0, 2.5, -np.inf]
    assert table["y"].isna().all()
    assert table["y"].dtype == float
    assert table["rlnTomoName"].tolist() == ["nan", "a", "b"]


def test_read_column_that_turns_to_text_late(tmp_path: Path) -> None:
    count = 400_000  # more than one piece of the parser
    body = "0012 1\n" * count + "a 2\n"
    table = read_table(write(tmp_path, f"data_\nloop_\n_label\n_y\n{body}"))
    assert table["label"].iloc[0] == "0012"
    assert table["label"].iloc[-1] == "a"
    assert table["y"].sum() == count + 2


def test_read_empty_loops(tmp_path: Path) -> None:
    blocks = read_star(
        write(
            tmp_path, "data_a\nloop_\n_rlnTomoName #1\n_y #2\ndata_b\nloop_\n_z\n\n\ndata_c\n\ndata_d\n_x 1\n"
        )
    )
    assert list(blocks) == ["a", "b", "c", "d"]
    table = get_table(blocks, "a", "a.star")
    assert table.columns.tolist() == ["rlnTomoName", "y"]
    assert len(table) == len(get_table(blocks, "b", "a.star")) == 0
    assert blocks["c"] == {}
    assert get_table(blocks, "d", "a.star")["x"].tolist() == [1]


def test_a_block_with_several_loops_round_trips(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "data_a\n_n 3\nloop_\n_x\n1\n2\nloop_\n_y\n_z\n3 4\n\ndata_b\nloop_\n_w\ndata_row.mrc 5\n".replace(
            "_w\n", "_w\n_v\n"
        ),
    )
    blocks = read_star(path)
    assert list(blocks) == ["a", "a#2", "a#3", "b"]
    assert get_table(blocks, "b", path)["w"].tolist() == ["data_row.mrc"]
    again = tmp_path / "b.star"
    write_star(again, blocks)
    assert again.read_text().count("data_a") == 1
    assert_same(read_star(again), blocks)


def assert_same(left: dict, right: dict) -> None:
    assert list(left) == list(right)
    for name, content in right.items():
        if isinstance(content, pd.DataFrame):
            pd.testing.assert_frame_equal(left[name], content, check_exact=True)
        else:
            assert left[name] == content


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no data block"),
        ("hello\nworld\n", "text before its first block in line 1"),
        (b"\x7fELF\0\0\0", "is a binary file"),
        (b"data_a\nloop_\n_rlnTomoName\n_y\n\xff\xfe 1\n", "is not UTF-8"),
        ("data_a\nloop_\n_x\n_y\n1 2\n3\n", "line 6 .* has too few values; block 'a' has 2 labels"),
        ("data_a\nloop_\n_x\n_y\n1\n3\n", "line 5 .* has too few values"),
        ("data_a\nloop_\n_x\n_y\n1 2 3\n3 4\n", "line 5 .* has 3 values"),
        ("data_a\nloop_\n_x\n_y\n1 2\n\n3 4 5\n", "line 7 .* has 3 values"),
        ("data_a\nloop_\n_x\n_y\n'1 2' 2\n3 'a b' 5\n", "line 6 .* has 3 values"),
        ("data_a\nloop_\n_x\n_y\n'1 2' 2\n3\n", "line 6 .* has too few values"),
        ("data_a\nloop_\n_x\n_x\n1 2\n", "block 'a' .* has the label 'x' twice"),
        ("data_a\n_x 1\n_x 2\n", "has the label 'x' twice"),
        ("data_a\n_x 1 2\n", "label 'x' in line 2 .* has 2 values"),
        ("data_a\n_x\n", "label 'x' in line 2 .* has 0 values"),
        ("data_a\n1 2 3\n", "value without a label in line 2"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(FileFormatError, match=message) as error:
        read_star(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_block_and_column(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no\.star"):
        read_star(tmp_path / "no.star")
    path = write(tmp_path, "data_a\nloop_\n_x\n1\ndata_b\nloop_\n_y\n2\n")
    with pytest.raises(FileFormatError, match="no block 'c'; it has 'a', 'b'"):
        read_table(path, "c")
    with pytest.raises(FileFormatError, match="holds 2 tables; expected one"):
        read_table(path)
    with pytest.raises(FileFormatError, match=r"block 'a' of .* lacks z, w"):
        read_table(path, "a", ["x", "z", "w"])
    table = read_table(path, "b", ["y"])
    assert require_columns(table, ["y"], path, "b") is table


def test_write_round_trips_every_type(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "rlnTomoName": ["0012", "_a", ""],
            "text": ["a b", "it's", '"quoted'],
            "float": [0.1, 1e-300, np.nan],
            "inf": [np.inf, -np.inf, -0.0],
            "int": [1, -(2**62), 3],
            "uint": np.array([1, 2**64 - 1, 5], np.uint64),
            "many": [1 / 3, 1e22, 123456789.123456789],
        }
    )
    blocks = {"general": {"a": 1, "b": 0.1, "rlnTomoName": "007", "c": "x y", "d": ""}, "t": table}
    path = tmp_path / "a.star"
    write_star(path, blocks)
    assert_same(read_star(path), blocks)


def test_write_narrow_types(tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    single = np.array([0.1, np.pi], np.float32)
    table = pd.DataFrame(
        {
            "b": [True, False],
            "f": single,
            "i": pd.array([1, None], dtype="Int64"),
            "o": pd.Series([None, "x"], dtype=object),
            "c": ["u", None],
        }
    )
    table["c"] = table["c"].astype("category")
    write_star(path, {"t": table, "p": {"yes": True, "n": np.float64(0.1)}})
    back = read_star(path)
    read = get_table(back, "t", path)
    assert read["b"].tolist() == [1, 0]
    np.testing.assert_array_equal(read["f"].astype(np.float32), single)
    assert read["i"].tolist()[0] == 1.0
    assert np.isnan(read["i"][1])
    assert read["o"].tolist() == ["", "x"]
    assert read["c"].tolist() == ["u", ""]
    assert back["p"] == {"yes": 1, "n": 0.1}


@pytest.mark.parametrize("value", ["two\nlines", "'a \" b' \" c"])
def test_write_refuses_what_star_cannot_hold(tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError, match="cannot be quoted in STAR"):
        write_star(tmp_path / "a.star", {"a": pd.DataFrame({"x": ["ok", value]})})
    assert not any(tmp_path.iterdir())


def test_write_refuses_bad_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must not hold blanks"):
        write_star(tmp_path / "a.star", {"a b": {}})
    twice = pd.DataFrame([[1, 2]], columns=["x", "x"])
    with pytest.raises(UserError, match="a label twice"):
        write_star(tmp_path / "a.star", {"a": twice})


def test_write_is_deterministic(tmp_path: Path) -> None:
    table = pd.DataFrame({"x": np.random.default_rng(0).normal(size=100)})
    write_star(tmp_path / "a.star", {"t": table})
    write_star(tmp_path / "b.star", {"t": table})
    assert (tmp_path / "a.star").read_bytes() == (tmp_path / "b.star").read_bytes()


printable = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"], include_characters=" "), max_size=8
)


@given(
    st.lists(
        st.tuples(
            printable.filter(lambda text: not ('"' in text and "'" in text)),
            st.floats(allow_nan=False),
            st.integers(-(2**63), 2**63 - 1),
        ),
        min_size=1,
        max_size=20,
    )
)
@settings(max_examples=60, deadline=None)
def test_any_row_round_trips(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    table = pd.DataFrame(rows, columns=["rlnTomoName", "x", "n"])
    path = tmp_path_factory.mktemp("star") / "a.star"
    write_star(path, {"t": table})
    read = read_table(path)
    assert read["rlnTomoName"].tolist() == table["rlnTomoName"].tolist()
    assert read["x"].tolist() == table["x"].tolist()
    assert read["n"].tolist() == table["n"].tolist()


def test_real_files_round_trip_and_agree_with_starfile(shared_data: Path, tmp_path: Path) -> None:
    starfile = pytest.importorskip("starfile")
    paths = sorted(shared_data.rglob("*.star"))
    assert len(paths) >= 15
    for path in paths:
        blocks = read_star(path)
        other = starfile.read(path, always_dict=True)
        assert list(other) == list(blocks)
        for name, content in blocks.items():
            if isinstance(content, pd.DataFrame):
                for label in content:
                    theirs = other[name][label]
                    ours = content[label].astype(theirs.dtype)
                    assert ours.tolist() == theirs.tolist(), (path, name, label)
        write_star(tmp_path / "copy.star", blocks)
        assert_same(read_star(tmp_path / "copy.star"), blocks)


@pytest.mark.relion
def test_relion_reads_what_is_written(relion: Callable[..., str], tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=50) * 1e3
    values[3] = np.nan
    names = [f"Micrographs/{i:03d}.mrc" for i in range(50)]
    table = pd.DataFrame({"rlnMicrographName": names, "rlnAngleRot": values, "rlnClassNumber": np.arange(50)})
    optics = pd.DataFrame({"rlnOpticsGroup": [1], "rlnVoltage": [300.0]})
    write_star(tmp_path / "f.star", {"optics": optics, "particles": table})
    printed = relion(
        "relion_star_printtable",
        "f.star",
        "data_particles",
        "rlnAngleRot",
        "rlnMicrographName",
        "rlnClassNumber",
    )
    rows = [line.split() for line in printed.splitlines() if line.strip()]
    assert [row[1] for row in rows] == names
    assert [int(row[2]) for row in rows] == list(range(50))
    np.testing.assert_allclose([float(row[0]) for row in rows], values, rtol=1e-4)
    assert relion("relion_star_printtable", "f.star", "data_optics", "rlnVoltage").split() == ["300.0"]
