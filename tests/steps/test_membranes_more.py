"""Membranes of particles: transfer functions, verdicts, killed jobs; and putting them back at other samplings."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from verglas.algo.membranes.putback import Patch, place_particle, sum_patches
from verglas.benchmarks.membrane_cases import Case, Look, make_case, sample_arc
from verglas.errors import UserError
from verglas.io.mrc import read_mrc
from verglas.io.star import read_star, write_star
from verglas.steps.membranes_analyze import MEMBRANES_ANALYZE_STEP, MembranesAnalyzeParams
from verglas.steps.membranes_subtract import MEMBRANES_SUBTRACT_STEP, MembranesSubtractParams
from verglas.steps.membranes_verdict import judge_membranes
from verglas.steps.step import RunOptions, RunReport, run_step

QUIET = RunOptions(device="cpu", quiet=True)
ARC = sample_arc((4, -6), 50, 0.004, 150)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Particles seen through a transfer function, which their averages are not."""
    folder = tmp_path_factory.mktemp("transfer")
    made = make_case(folder, Look((ARC,), 0.5, ctf=True, gap=14.0, sigma=3.0), count=24, box=112)
    params = MembranesAnalyzeParams(averages=folder / "averages.mrcs")
    assert not run_step(MEMBRANES_ANALYZE_STEP, params, folder / "analyzed", options=QUIET).failed
    return made


def subtract(case: Case, out: str, *, ctf: bool = True, particles: str = "particles.star") -> RunReport:
    params = MembranesSubtractParams(
        particles=case.folder / particles, membranes=case.folder / "analyzed/membranes.star", ctf=ctf
    )
    return run_step(MEMBRANES_SUBTRACT_STEP, params, case.folder / out, options=QUIET)


def left(case: Case, out: str) -> float:
    taken = case.images - read_mrc(case.folder / out / "stacks/part_00001.mrcs")
    return float(np.sqrt(((case.membranes - taken) ** 2).sum() / (case.membranes**2).sum()))


@pytest.fixture(scope="module")
def with_ctf(case: Case) -> RunReport:
    return subtract(case, "with_ctf")


def test_the_transfer_function_of_each_particle_shapes_its_profile(case: Case, with_ctf: RunReport) -> None:
    subtract(case, "without", ctf=False)
    assert left(case, "with_ctf") < 0.1
    assert left(case, "with_ctf") < 0.5 * left(case, "without")
    assert with_ctf.summary is not None
    assert str(with_ctf.summary.values["verdict"].value).startswith("it worked: ")
    assert not with_ctf.summary.warnings
    scales = read_star(case.folder / "with_ctf/particles.star")["particles"]["vglMembraneScale"]
    # Scales and profile have one factor in common.
    np.testing.assert_allclose(scales / scales.mean(), case.scales / case.scales.mean(), atol=0.1)


def test_poses_of_other_particles_are_told(case: Case) -> None:
    blocks = read_star(case.folder / "particles.star")
    rows = blocks["particles"].copy()
    rows["rlnAnglePsi"] += 90.0
    write_star(case.folder / "turned.star", {**blocks, "particles": rows})
    report = subtract(case, "turned", particles="turned.star")
    assert report.summary is not None
    assert str(report.summary.values["verdict"].value).startswith("it did not work: ")
    assert any("poses" in one for one in report.summary.warnings)


def test_each_fault_has_its_sentence() -> None:
    many = np.ones(50)
    good = judge_membranes(many, 0.05 * many, 0.3 * many, 0.02 * many, 0.03, 5.0)
    assert good.worked
    assert not good.faults
    assert good.scale_error == pytest.approx(0.05)
    signs = np.where(np.arange(50) < 15, -1.0, 1.0)
    for fault, scale, error, shift, out, rest in (
        ("hardly seen", many, 0.5 * many, 0 * many, 0 * many, 0.03),
        (
            "30 % of the particles have membranes of the opposite contrast",
            signs,
            0.1 * many,
            0 * many,
            0 * many,
            0.0,
        ),
        ("5 pixels or more", many, 0.1 * many, -4.9 * many, 0 * many, 0.0),
        ("40 % of the pixels", many, 0.1 * many, 0 * many, 0.4 * many, 0.0),
        ("20 % of the mean grey", many, 0.1 * many, 0 * many, 0 * many, 0.2),
    ):
        told = judge_membranes(scale, error, shift, out, rest, 5.0)
        assert len(told.faults) == 1
        assert fault in told.faults[0]
        assert told.sentence.startswith("it worked in part" if told.worked else "it did not work")
    nothing = judge_membranes(many[:0], many[:0], many[:0], many[:0], 0.0, 5.0)
    assert not nothing.worked


def test_a_killed_job_goes_on_and_mixes_nothing(case: Case, with_ctf: RunReport) -> None:
    folder = case.folder / "killed"
    code = (
        "from tests.steps.test_membranes_more import *\n"
        f"params = MembranesSubtractParams(particles={str(case.folder / 'particles.star')!r}, "
        f"membranes={str(case.folder / 'analyzed/membranes.star')!r}, ctf=True)\n"
        f"run_step(MEMBRANES_SUBTRACT_STEP, params, __import__('pathlib').Path({str(folder)!r}), options=QUIET)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
    while not (folder / "classes.json").exists():
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "particles.star").exists()
    # Profiles of a state that is no more are not taken for those of this one.
    stale = json.loads((folder / "classes.json").read_text())
    stale["made_from"] = "other"
    for one in stale["classes"].values():
        one["profiles"] = [[0.0] * len(profile) for profile in one["profiles"]]
    (folder / "classes.json").write_text(json.dumps(stale))
    subtract(case, "killed")
    for name in ("stacks/part_00001.mrcs", "classes.json", "figures/fits.png"):
        assert (folder / name).read_bytes() == (case.folder / "with_ctf" / name).read_bytes()
    with pytest.raises(UserError, match="overwrite"):
        subtract(case, "killed", ctf=False)


def draw(
    size: int, step: float = 1.0, first: tuple[float, float] = (0.0, 0.0)
) -> tuple[np.ndarray, np.ndarray]:
    """A membrane along a slanted line, and texture beside it; of any window and sampling of one plane."""
    y, x = np.meshgrid(first[0] + step * np.arange(size), first[1] + step * np.arange(size), indexing="ij")
    d = 0.6 * (x - 90) + 0.8 * (y - 100)
    membrane = np.exp(-0.5 * ((d - 9) / 4) ** 2) + np.exp(-0.5 * ((d + 9) / 4) ** 2)
    texture = np.sin(x / 9) * np.cos(y / 7) + 0.5 * np.sin((x + 2 * y) / 23)
    return membrane, texture


@pytest.mark.parametrize("factor", [1.0, 1.5, 0.75])
@pytest.mark.parametrize("centre", [(96.0, 90.0), (96.0, 6.0)])
def test_particles_of_other_sampling_and_at_the_border(factor: float, centre: tuple[float, float]) -> None:
    membrane, texture = draw(192)
    micrograph = 40 - 3 * (membrane + texture)
    box = 64
    low = (centre[0] - factor * (box // 2), centre[1] - factor * (box // 2))
    own, beside = draw(box, factor, low)
    before = own + beside
    patch = place_particle(micrograph, before, before - own, centre, factor)
    assert patch is not None
    assert patch.slope == pytest.approx(-3, rel=0.05)
    assert patch.agreement < -0.97
    assert patch.columns.start >= 0
    sought = -3 * membrane[patch.rows, patch.columns]
    # Where particles are sampled more coarsely, their interpolation is a little blunt.
    assert np.abs(patch.removed - sought)[2:-2, 2:-2].max() < 0.15
    if centre[1] < factor * (box // 2):
        assert patch.columns.start == 0
        assert patch.removed.shape[1] < round(box * factor)


def test_what_does_not_lie_there_is_not_put_there() -> None:
    membrane, texture = draw(192)
    noise = np.random.default_rng(0).normal(size=(64, 64))
    assert place_particle(membrane + texture, noise, noise - 1, (96.0, 96.0), 1.0) is None
    assert place_particle(membrane + texture, noise, noise - 1, (96.0, -40.0), 1.0) is None


def test_boxes_of_one_membrane_are_averaged_and_crossing_ones_add_up() -> None:
    y, x = np.mgrid[:120, :120].astype(float)
    upright, level = (np.exp(-0.5 * ((axis - 60) / 4) ** 2) for axis in (x, y))

    def cut(of: np.ndarray, row: int, column: int) -> Patch:
        place = (slice(row, row + 60), slice(column, column + 60))
        r = np.abs(np.arange(60) - 30) / 30
        edge = np.prod(np.meshgrid(*[np.clip((1 - r) / 0.2, 0, 1)] * 2, indexing="ij"), axis=0)
        return Patch(*place, of[place], edge + 1e-9, edge, 1.0, 1.0)

    both = sum_patches(
        [cut(upright, 10, 30), cut(upright, 45, 30), cut(level, 30, 10), cut(level, 30, 45)], x.shape
    )
    inner = (slice(45, 75), slice(45, 75))
    np.testing.assert_allclose(both[inner], (upright + level)[inner], atol=0.02)
    assert np.abs(np.diff(both, axis=0)).max() < 0.25
