"""The same data gives the same bytes, whatever the user's own settings."""

import matplotlib as mpl
import pytest
from PIL import Image

from verglas.figures.style import DOTS_PER_INCH, house_style, make_figure, save_figure


def draw(path):
    with house_style():
        figure = make_figure(4, 2)
        axes = figure.subplots()
        axes.plot([1, 3, 2], label="curve")
        axes.set_xlabel("resolution / Å")
        axes.legend()
        save_figure(figure, path)
    return path.read_bytes()


def test_bytes_do_not_depend_on_settings_or_time(tmp_path):
    first = draw(tmp_path / "a.png")
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 30, "savefig.dpi": 10, "savefig.bbox": "tight"}):
        second = draw(tmp_path / "b.png")
    assert first == second
    assert b"matplotlib" not in first.lower()
    assert b"tEXt" not in first
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (4 * DOTS_PER_INCH, 2 * DOTS_PER_INCH)


def test_style_ends_with_its_block():
    before = dict(mpl.rcParams)
    with house_style():
        assert mpl.rcParams["axes.spines.top"] is False
    assert dict(mpl.rcParams) == before


def test_only_png_and_pdf_are_written(tmp_path):
    with house_style(), pytest.raises(ValueError, match=r"must end in \.png or \.pdf"):
        save_figure(make_figure(), tmp_path / "a.svg")
    assert list(tmp_path.iterdir()) == []


def test_a_pdf_holds_no_date(tmp_path):
    with house_style():
        written = save_figure(make_figure(), tmp_path / "a.pdf").read_bytes()
    assert written.startswith(b"%PDF")
    assert b"CreationDate" not in written
