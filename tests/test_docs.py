"""The manual: every block of code runs or says why not, every link leads somewhere, generated pages are fresh.

The blocks of a page run in its order in one folder, a copy of a small project that holds what a user of other
programs has: `warp_tiltseries/`, `etomo/`, `aretomo/`, `AlignTiltSeries/`, `fixedStacks/`, `serialem/`, `J12/`.
"""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from markdown.extensions.toc import slugify

from verglas.io.aretomo import tilt_series_to_aretomo, write_aln, write_aretomo_ctf
from verglas.io.cryosparc import write_cs
from verglas.io.emclarity import EmclarityRegion, tilt_series_to_emclarity, write_ctf_table, write_regions
from verglas.io.imod import tilt_series_to_imod, write_imod_folder
from verglas.io.mrc import read_mrc, write_mrc
from verglas.io.relion_tilt_series import read_tilt_series, write_tilt_series
from verglas.io.warp import tilt_series_to_warp, write_warp_xml
from verglas.model import TiltSeries
from verglas.steps.simulate import SIMULATE_STEP, SimulateParams
from verglas.steps.step import RunOptions, run_step

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
RUN = {"bash", "python"}
SHOWN = {"text"}

_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n\s*)?^```(?P<info>[^\n]*)\n(?P<code>.*?)^```", re.M | re.S
)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.M)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its code, its line, and why it is not run."""

    language: str
    code: str
    line: int
    reason: str | None


def list_blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            found["info"].strip(),
            found["code"],
            text.count("\n", 0, found.start("info")) + 1,
            found["reason"],
        )
        for found in _BLOCK.finditer(text)
    ]


def name_page(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """Two series of nine views, as each program keeps them, in one folder."""
    folder = tmp_path_factory.mktemp("manual") / "project"
    params = SimulateParams(
        count=2,
        image_size=(96, 96),
        thickness=600.0,
        tilt_step=15.0,
        copies=3,
        vesicles=0,
        gold=2,
        misalignment=0,
    )
    run_step(SIMULATE_STEP, params, folder / "simulation", options=RunOptions(quiet=True))
    series = read_tilt_series(folder / "simulation/truth/tilt_series.star")
    for name, one in series.items():
        write_as_others_do(folder, name, one)
    write_tilt_series(folder / "AlignTiltSeries/job005", series.values())
    (folder / "Extract/job010").mkdir(parents=True)
    shutil.copy(folder / "simulation/truth/particles.star", folder / "Extract/job010/particles.star")
    (folder / "J12").mkdir()
    write_cs(folder / "J12/particles_exported.cs", make_cs())
    return folder


def write_as_others_do(folder: Path, name: str, series: TiltSeries) -> None:
    stack = series.images[0].path
    for copy in (
        f"warp_tiltseries/tiltstack/{name}/{name}.st",
        f"etomo/{name}/{name}.st",
        f"aretomo/{name}.mrc",
        f"fixedStacks/{name}.fixed",
    ):
        (folder / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(stack, folder / copy)
    write_warp_xml(folder / f"warp_tiltseries/{name}.xml", tilt_series_to_warp(series))
    write_imod_folder(folder / "etomo" / name, name, tilt_series_to_imod(series))
    alignment, ctf = tilt_series_to_aretomo(series)
    write_aln(folder / f"aretomo/{name}.aln", alignment)
    assert ctf is not None
    write_aretomo_ctf(folder / f"aretomo/{name}_CTF.txt", ctf)
    (folder / "fixedStacks/ctf").mkdir(exist_ok=True)
    write_ctf_table(folder / f"fixedStacks/ctf/{name}_ali1_ctf.tlt", tilt_series_to_emclarity(series))
    (folder / "recon").mkdir(exist_ok=True)
    write_regions(folder / "recon", name, (EmclarityRegion(96, 0, 95, 60),))
    write_as_serialem(folder / "serialem", name, series)


def write_as_serialem(folder: Path, name: str, series: TiltSeries) -> None:
    """Sections in the order of recording, and their mdoc."""
    order = np.argsort(series.pre_exposure_e_per_a2)
    images = read_mrc(series.images[0].path)[order]
    write_mrc(folder / f"{name}.mrc", images, voxel_size_angstrom=series.pixel_size_angstrom, is_stack=True)
    sections = [
        f"[ZValue = {row}]\nTiltAngle = {series.nominal_tilt_deg[view]}\n"
        f"ExposureDose = {series.exposure_e_per_a2[view]}\nSubFramePath = X:\\frames\\{name}_{row:03d}.tif\n"
        for row, view in enumerate(order)
    ]
    head = f"PixelSpacing = {series.pixel_size_angstrom}\nVoltage = 300\nImageFile = {name}.mrc\n"
    title = "[T =     Tilt axis angle = 85.0, binning = 4  spot = 8  camera = 2]\n"
    (folder / f"{name}.mrc.mdoc").write_text("\n".join([head, title, *sections]))


def make_cs() -> np.ndarray:
    """Three particles as cryoSPARC exports them."""
    records = np.zeros(3, [("blob/path", "S40"), ("blob/idx", "u4"), ("blob/psize_A", "f4"),
        ("ctf/df1_A", "f4"), ("ctf/df2_A", "f4"), ("ctf/df_angle_rad", "f4"),
        ("alignments3D/pose", "f4", 3), ("alignments3D/shift", "f4", 2), ("alignments3D/psize_A", "f4"),
        ("alignments3D/split", "u4")])  # fmt: skip
    records["blob/path"] = b">J12/extract/batch_0.mrc"
    records["blob/idx"] = range(3)
    records["blob/psize_A"] = records["alignments3D/psize_A"] = 1.31
    records["ctf/df1_A"], records["ctf/df2_A"] = 15400, 15200
    records["alignments3D/pose"] = np.eye(3)
    return records


PAGES_WITH_CODE = [
    page for page in PAGES if any(b.language in RUN and not b.reason for b in list_blocks(page))
]


@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=name_page)
def test_blocks_run(page, project, tmp_path, monkeypatch):
    folder = tmp_path / "project"
    shutil.copytree(project, folder)
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "__main__"}
    before = set(folder.rglob("job.json"))
    named: set[str] = set()
    for block in list_blocks(page):
        if block.reason or block.language not in RUN:
            continue
        where = f"{name_page(page)}:{block.line}"
        if block.language == "python":
            exec(compile(block.code, where, "exec"), names)
        else:
            run_in_shell(block.code, where)
            named |= set(re.findall(r"^verglas .*?--out (\S+)", block.code, re.M))
    jobs = [json.loads(path.read_text()) for path in set(folder.rglob("job.json")) - before]
    assert len(jobs) >= len(named)
    for job in jobs:
        last = job["runs"][-1]
        assert last["finished"], job["step"]
        assert last["failed"] == 0, job["step"]


def run_in_shell(code: str, where: str) -> None:
    """Run as a user would who has activated the environment of this interpreter."""
    programs = Path(sys.executable).parent
    assert (programs / "verglas").exists(), f"verglas is not installed beside {sys.executable}"
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{where} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_blocks_are_of_a_kind_that_is_run_or_say_why_not(page):
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^\s*(?:```|~~~)", text, re.M)) == 2 * len(list_blocks(page))
    for block in list_blocks(page):
        assert block.language in RUN | SHOWN, (
            f"{name_page(page)}:{block.line} is a block of {block.language!r}"
        )
        assert block.reason is None or (block.language in RUN and len(block.reason.split()) >= 3)


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_links_lead_somewhere(page):
    for target in _LINK.findall(strip_code(page)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        other = (page.parent / file).resolve() if file else page
        assert other.is_file(), f"{name_page(page)} links to {target!r}"
        if anchor:
            headings = _HEADING.findall(strip_code(other))
            assert anchor in {slugify(re.sub(r"[`*]", "", one), "-") for one in headings}, f"{target!r}"


def strip_code(page: Path) -> str:
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("script", ["make_commands", "make_benchmarks"])
def test_generated_pages_are_up_to_date(script):
    made = runpy.run_path(str(ROOT / "docs" / f"{script}.py"))
    assert made["PAGE"].read_text(encoding="utf-8") == made["make_page"](), f"run python docs/{script}.py"


def test_every_page_is_in_the_menu():
    def gather(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [
            page for part in (entry if isinstance(entry, list) else entry.values()) for page in gather(part)
        ]

    menu = gather(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(menu) == sorted(str(page.relative_to(ROOT / "docs")) for page in PAGES[1:])


def test_readme_opens_with_the_two_commands():
    first, second = (block.code for block in list_blocks(ROOT / "README.md")[:2])
    start = "python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt "
    assert first == f"{start}. && verglas demo --out demo\n"
    assert second == f"{start}-e '.[dev]' && pytest -n 2\n"
