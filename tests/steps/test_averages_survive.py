"""Averages and alignments that are killed go on to the same bytes, and one broken series does not stop the others."""

import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from verglas.io.mrc import read_mrc
from verglas.io.relion_particles import read_particles, write_particles
from verglas.io.relion_tilt_series import read_tilt_series, write_tilt_series
from verglas.model import ImageReference, join_particles
from verglas.steps.align import ALIGN_STEP, AlignParams
from verglas.steps.average import AVERAGE_STEP, AverageParams
from verglas.steps.step import RunOptions, run_step

QUIET = RunOptions(device="cpu", quiet=True)
NAMES = ("A", "B", "C")


@pytest.fixture(scope="module")
def three(ribosomes, tmp_path_factory):
    """The series under three names, each with a stack of its own, and a third of the particles in each."""
    folder = tmp_path_factory.mktemp("three")
    one = next(iter(read_tilt_series(ribosomes.series).values()))
    particles = read_particles(ribosomes.near)
    series, parts = [], []
    for row, name in enumerate(NAMES):
        stack = folder / f"{name}.mrc"
        shutil.copy(one.images[0].path, stack)
        moved = one.map_images(lambda image, stack=stack: ImageReference(stack, image.section))
        series.append(replace(moved, name=name))
        mine = particles.take(np.arange(len(particles)) % 3 == row)
        parts.append(replace(mine, tomogram_names=np.full(len(mine), name)))
    write_tilt_series(folder, series)
    whole = join_particles(parts)
    write_particles(folder / "particles.star", replace(whole, half_set=1 + np.arange(len(whole)) % 2))
    return folder


def arguments(three, command, out):
    shared = ["--tilt-series", three / "tilt_series.star", "--particle-radius", "150", "--out", out]
    if command == "align":
        shared += ["--reference", three / "first.mrc", "--lowpass", "60", "--turn-step", "6"]
    return [command, three / "particles.star", *shared, "--device", "cpu", "--quiet"]


def start(three, command, out):
    words = map(str, [sys.executable, "-m", "verglas", *arguments(three, command, out)])
    return subprocess.Popen(list(words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def list_files(folder):
    """What a user goes on with: not the times and hosts in the records."""
    kinds = ("*.mrc", "*.star", "*.npz", "*.png")
    return {str(path.relative_to(folder)): path.read_bytes() for kind in kinds for path in folder.rglob(kind)}


@pytest.mark.parametrize("command", ["average", pytest.param("align", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_to_the_same_bytes(three, ribosomes, tmp_path, command):
    shutil.copy(ribosomes.reference, three / "first.mrc")
    items = tmp_path / "killed/items"
    with start(three, command, tmp_path / "killed") as process:
        while process.poll() is None and len(list(items.glob("[!.]*.json"))) < 1:
            time.sleep(0.02)
        process.kill()
    before = {path: path.stat().st_mtime_ns for path in items.glob("[!.]*.json")}
    assert before
    assert not (tmp_path / "killed/summary.json").exists()
    for out in ("killed", "whole"):
        with start(three, command, tmp_path / out) as process:
            told, _ = process.communicate()
        assert process.returncode == 0, told
    assert {path: path.stat().st_mtime_ns for path in before} == before
    killed, whole = (list_files(tmp_path / out) for out in ("killed", "whole"))
    assert killed.keys() == whole.keys()
    assert [name for name in whole if killed[name] != whole[name]] == []


def test_a_broken_series_is_reported_and_the_others_are_averaged(three, ribosomes, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(three, folder)
    series = [
        one.map_images(lambda image: ImageReference(folder / image.path.name, image.section))
        for one in read_tilt_series(three / "tilt_series.star").values()
    ]
    write_tilt_series(folder, series)
    with (folder / "B.mrc").open("r+b") as file:
        file.truncate(file.seek(0, 2) // 2)
    shared = {
        "particles": folder / "particles.star",
        "tilt_series": folder / "tilt_series.star",
        "particle_radius": 150.0,
    }
    average = run_step(AVERAGE_STEP, AverageParams(**shared), tmp_path / "average", options=QUIET)
    assert list(average.failed) == ["B"]
    assert "B.mrc" in average.failed["B"]
    assert np.isfinite(read_mrc(tmp_path / "average/maps/average.mrc")).all()
    kept = read_particles(folder / "particles.star")
    assert average.summary.values["particles"].value == int((kept.tomogram_names != "B").sum())
    first = AlignParams(**shared, reference=ribosomes.reference, turn=0.0, refine=False)
    align = run_step(ALIGN_STEP, first, tmp_path / "align", options=QUIET)
    assert list(align.failed) == ["B"]
    assert set(read_particles(tmp_path / "align/particles.star").tomogram_names.tolist()) == {"A", "C"}

    # Mended, the run goes on; a half map that was moved before and now stays is not left behind.
    shutil.copy(three / "B.mrc", folder / "B.mrc")
    (tmp_path / "average/maps/half2_registered.mrc").write_bytes(b"of the run before")
    mended = run_step(AVERAGE_STEP, AverageParams(**shared), tmp_path / "average", options=QUIET)
    assert mended.done == ("B",)
    registered = tmp_path / "average/maps/half2_registered.mrc"
    assert not registered.exists() or np.isfinite(read_mrc(registered)).all()
