"""The page holds what the job says, carries its pictures, needs no network, and stays small."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.steps.tiny import STEP, TinyParams
from verglas.errors import UserError
from verglas.report import write_report
from verglas.report.pictures import BUDGET_BYTES, MOST_PICTURES, embed_pictures
from verglas.report.wording import describe_moment, describe_value, format_value, heading_of
from verglas.steps.step import RunOptions, run_step


class Page(HTMLParser):
    """Addresses and text of a page; raises when tags are not closed in order."""

    _VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, text):
        super().__init__()
        self.addresses, self.words, self.open, self.tags = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in {"src", "href"}]
        if tag not in self._VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def job(tmp_path):
    numbers = tmp_path / "numbers"
    numbers.mkdir()
    (numbers / "T_1.txt").write_text("1 2")
    (numbers / "T_2.txt").write_text("")
    (numbers / "T_3.txt").write_text("<script>alert(1)</script>")
    (numbers / "T_4.txt").write_text("bug")
    run_step(STEP, TinyParams(input=numbers, scale=2), tmp_path / "job", options=RunOptions(quiet=True))
    return tmp_path / "job"


def test_page_tells_what_happened(job):
    page = Page(write_report([job]).read_text())
    for words in (
        "2 of 4 items failed.",
        "T_4 KeyError: 'T_4'",
        "no numbers at all (T_2)",
        "total 6 e Sum of all.",
        "Sum of each item.",
        "seconds 0.0",
        "In bold: given by you.",
        "Inputs: 2 files",
        "sums.star",
    ):
        assert words in page.text, words


def test_page_needs_nothing_but_itself(job):
    text = write_report([job]).read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "url(" not in text
    assert "@import" not in text
    assert not [address for address in page.addresses if re.match(r"(?:[a-z]+:)?//", address)]
    (picture,) = [address for address in page.addresses if address.startswith("data:image/png;base64,")]
    assert base64.b64decode(picture.partition(",")[2]) == (job / "figures/sums.png").read_bytes()
    assert "figures/sums.png" in page.addresses


def test_page_speaks_of_warnings_first(job):
    text = write_report([job]).read_text()
    assert text.index("items failed") < text.index("<dl") < text.index("<figure") < text.index("Parameters")


def test_what_the_job_repeats_of_its_items_is_said_once(job):
    summary = json.loads((job / "summary.json").read_text())
    (job / "summary.json").write_text(json.dumps(summary | {"warnings": ["T_2: no numbers at all"]}))
    page = Page(write_report([job]).read_text())
    assert "T_2: no numbers at all" in page.text
    assert "(T_2)" not in page.text


def test_text_of_users_is_escaped(tmp_path):
    numbers = tmp_path / "<b>numbers"
    numbers.mkdir()
    (numbers / "T_1.txt").write_text("1")
    run_step(STEP, TinyParams(input=numbers), tmp_path / "job", options=RunOptions(quiet=True))
    text = write_report([tmp_path / "job"]).read_text()
    assert "<b>numbers" not in text
    assert "&lt;b&gt;numbers" in text


def test_unfinished_job_has_a_page(job):
    (job / "items/T_1.json").unlink()
    (job / "summary.json").unlink()
    (job / "job.json").write_text((job / "job.json").read_text().replace('"failed",', '"running",', 1))
    page = Page(write_report([job]).read_text())
    assert "unfinished" in page.text
    assert "1 of 4 items have no result yet: T_1" in page.text


def test_several_jobs_share_a_page(job, tmp_path):
    page = Page(write_report([job, job], tmp_path / "both.html").read_text())
    assert "tiny → tiny" in page.text
    assert {"#job-1", "#job-2", "job/figures/sums.png"} <= set(page.addresses)


def test_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least one job folder"):
        write_report([])
    with pytest.raises(UserError, match=r"no job\.json"):
        write_report([tmp_path])


def test_large_pictures_shrink_to_the_budget(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{k}.png" for k in range(4)]
    for k, path in enumerate(paths):
        side = 1400 if k else 20
        Image.fromarray(rng.integers(0, 255, (side, side), dtype=np.uint8)).save(path)
    assert sum(path.stat().st_size for path in paths) > 1.5 * BUDGET_BYTES
    embedded = embed_pictures(paths, tmp_path)
    assert sum(len(one.data) for one in embedded.values()) < BUDGET_BYTES * 4 / 3 + 200
    assert embedded[paths[0]].data.startswith("data:image/png")
    assert embedded[paths[1]].data.startswith("data:image/jpeg")
    assert embedded[paths[1]].width == 1400


def test_too_many_pictures_become_links(tmp_path):
    paths = [tmp_path / f"{k}.png" for k in range(MOST_PICTURES + 1)]
    for path in paths:
        Image.new("L", (4, 4)).save(path)
    embedded = embed_pictures(paths, tmp_path)
    assert embedded[paths[-2]].data
    assert not embedded[paths[-1]].data
    assert embedded[paths[-1]].link == f"{MOST_PICTURES}.png"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "–"),
        (True, "yes"),
        (12, "12"),
        (1234567, "1\u202f234\u202f567"),
        (0.000012345, "1.234e−05"),
        (3.14159, "3.142"),
        (-2.0, "−2"),
        (-0.5, "−0.5"),
        (15234.56, "15\u202f234.6"),
        ([630, 652, 41], "630 × 652 × 41"),
        (["a", "b"], "a, b"),
        ([], "none"),
        ("ramp", "ramp"),
        ({"x": 1}, "x 1"),
    ],
)
def test_values_are_written_for_people(value, told):
    assert format_value(value) == told


def test_names_tell_their_unit():
    assert heading_of("mean_defocus_angstrom") == "mean defocus / Å"
    assert heading_of("exposure_e_per_a2") == "exposure / e/Å²"
    assert heading_of("tilt_deg") == "tilt / °"
    assert heading_of("views") == "views"


def test_parameters_and_times_are_written_for_people():
    assert describe_value(None) == "not given"
    assert describe_value([0.5, 1]) == "0.5 1"
    assert describe_value(False) == "no"
    assert describe_moment("2026-11-03T09:05:00.123+01:00") == "3 Nov 2026, 09:05"
    assert describe_moment("") == "not finished"
