"""`preprocess`: operations against their formulas, the time of all ten, kills, and what the denoiser leaves."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from verglas.algo.micrograph.operations import plan_sizes
from verglas.algo.micrograph.recipe import Cutoff, Recipe, process_micrograph
from verglas.benchmarks import preprocess_formulas as formulas
from verglas.benchmarks.harness import Figure, measure_process, measure_time
from verglas.benchmarks.preprocess_denoiser import compare_denoisers
from verglas.io.mrc import read_mrc, read_mrc_header, write_mrc
from verglas.io.star import get_table, read_star

Array = npt.NDArray[np.float64]

FULL = Recipe(
    crop=10,
    logarithm=(4.431, 0.402, 336.6),
    bad_pixels=5.0,
    invert=True,
    downsample=2.0,
    denoise=50,
    gaussian=Cutoff(2.0),
    highpass=Cutoff(0.002),
    lowpass=Cutoff(0.4),
    normalise=True,
)
"""All ten with the values that Xmipp's form proposes."""

_FLAGS = "--crop 10 --log --bad-pixels 5 --invert --downsample 2.5 --denoise 50 --gaussian 2".split()  # noqa: SIM905
_FLAGS += ["--highpass", "0.002", "--lowpass", "0.4", "--normalise"]


def run(quick: bool) -> Iterator[Figure]:
    """Compare with the formulas, time a camera image, kill jobs, train a denoiser."""
    yield from compare_with_formulas(96 if quick else 160)
    size = 1024 if quick else 4096
    image = torch.from_numpy(make_micrograph(size))
    timing = measure_time(lambda: process_micrograph(image, 1.0, FULL), rounds=1 if quick else 3)
    yield Figure(
        "preprocess.seconds",
        timing.median,
        f"s, all ten operations on {size} x {size} pixels",
        target="" if quick else "at most 3 on two cores",
        holds=None if quick else timing.median <= 3,
    )
    with tempfile.TemporaryDirectory(prefix="verglas-preprocess-") as scratch:
        yield from _run_command(Path(scratch), size)
        yield _kill_streams(Path(scratch), 1 if quick else 10)
    yield from compare_denoisers(quick)


def make_micrograph(size: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Make counts of about 40 electrons a pixel with some dark discs, and some hot and dead pixels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    mean = 40 + 2 * x
    for _ in range(12):
        place = rng.random(2)
        mean -= 8 * (np.hypot(y - place[0], x - place[1]) < 0.04)
    image: npt.NDArray[np.float32] = rng.poisson(mean).astype(np.float32)
    image.ravel()[rng.choice(image.size, 40, replace=False)] = np.repeat([0, 4000], 20)
    return image


def compare_with_formulas(size: int) -> Iterator[Figure]:
    """Hold each operation against its formula, and all in their order."""
    image = make_micrograph(size)
    single = {
        "crop": Recipe(crop=10),
        "logarithm": Recipe(logarithm=FULL.logarithm),
        "bad_pixels": Recipe(bad_pixels=5.0),
        "invert": Recipe(invert=True),
        "downsample": Recipe(downsample=2.5),
        "denoise": Recipe(denoise=50),
        "gaussian": Recipe(gaussian=Cutoff(2.0)),
        "highpass": Recipe(highpass=Cutoff(0.05), highpass_width=0.02),
        "lowpass": Recipe(lowpass=Cutoff(0.3), lowpass_width=0.05),
        "normalise": Recipe(normalise=True),
        # With more steps the denoiser's formula amplifies its own rounding errors beyond the target.
        "all": replace(FULL, downsample=2.5, denoise=20),
    }
    for name, recipe in single.items():
        found = process_micrograph(torch.from_numpy(image), 1.0, recipe).image.float().double().numpy()
        error = _error(found, follow_formulas(image.astype(float), recipe))
        yield Figure(
            f"preprocess.error_{name}",
            error,
            "largest deviation from the formula, over the standard deviation of the result, as float32",
            target="at most 1e-5",
            holds=error <= 1e-5,
        )


def _error(found: Array, expected: Array) -> float:
    # What a float32 cannot hold of a mean beside the contrast is no error of the operation.
    rounding = float(np.abs(expected).max()) * 2.0**-24
    return max(0.0, float(np.abs(found - expected).max()) - rounding) / float(expected.std())


def follow_formulas(image: Array, recipe: Recipe) -> Array:
    """Do a recipe by the formulas; cut-offs are in pixels."""
    if recipe.crop:
        image = image[recipe.crop : -recipe.crop, recipe.crop : -recipe.crop]
    if recipe.logarithm:
        image = formulas.take_logarithm(image, *recipe.logarithm)
    if recipe.bad_pixels:
        image = formulas.remove_bad_pixels(image, recipe.bad_pixels)
    image = -image if recipe.invert else image
    if recipe.downsample:
        sizes = [plan_sizes(side, recipe.downsample) for side in image.shape]
        starts = [side // 2 - kept // 2 for side, (kept, _) in zip(image.shape, sizes, strict=True)]
        part = image[starts[0] : starts[0] + sizes[0][0], starts[1] : starts[1] + sizes[1][0]]
        image = formulas.sum_waves(part, (sizes[0][1], sizes[1][1]))
    if recipe.denoise:
        image = formulas.denoise(image, recipe.denoise) * np.ptp(image) + image.min()
    frequency = formulas.frequencies(image.shape)
    if recipe.gaussian:
        image = formulas.filter_waves(image, formulas.gaussian(frequency, recipe.gaussian.value))
    for name in ("highpass", "lowpass"):
        if cutoff := getattr(recipe, name):
            transfer = getattr(formulas, name)(frequency, cutoff.value, getattr(recipe, f"{name}_width"))
            image = formulas.filter_waves(image, transfer)
    return (image - image.mean()) / image.std() if recipe.normalise else image


def _run_command(scratch: Path, size: int) -> Iterator[Figure]:
    write_mrc(scratch / "in/one.mrc", make_micrograph(size), voxel_size_angstrom=0.8)
    done = measure_process(_make_command(scratch))
    yield Figure("preprocess.command_seconds", done.seconds, "s, with start-up, figure and report")
    yield Figure("preprocess.peak_memory", done.memory_bytes / 1e6, "MB")
    told = [read_mrc_header(scratch / "out/micrographs/one.mrc").pixel_size_angstrom or 0.0]
    star = scratch / "out/micrographs.star"
    told += get_table(read_star(star), "optics", star)["rlnMicrographPixelSize"].tolist()
    worst = max(abs(pixel / 2.0 - 1) for pixel in told)
    yield Figure(
        "preprocess.pixel_size_error",
        worst,
        "of 0.8 Å downsampled by 2.5, in the header and the STAR file, as a part",
        target="at most 1e-4",
        holds=worst <= 1e-4,
    )


def _make_command(scratch: Path) -> list[str | Path]:
    return [
        sys.executable,
        "-m",
        "verglas",
        "preprocess",
        scratch / "in",
        *_FLAGS,
        "--out",
        scratch / "out",
        "--quiet",
    ]


def _kill_streams(scratch: Path, kills: int) -> Figure:
    """Kill jobs at random while their folder fills, and count what is published and not as it should be."""
    rng = np.random.default_rng(1)
    expected: dict[str, npt.NDArray[np.float32]] = {}
    wrong = 0
    recipe = replace(FULL, downsample=2.5)
    for number in range(kills + 1):
        image = make_micrograph(1024, seed=number + 2)
        write_mrc(scratch / f"in/mic_{number}.mrc", image, voxel_size_angstrom=0.8)
        expected[f"mic_{number}"] = (
            process_micrograph(torch.from_numpy(image), 0.8, recipe).image.float().numpy()
        )
        # The next one, which the microscope is still writing.
        (scratch / f"in/mic_{number + 1}.mrc").write_bytes(
            (scratch / f"in/mic_{number}.mrc").read_bytes()[:90000]
        )
        process = subprocess.Popen(
            _make_command(scratch), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if number < kills:
            _kill_after(process, rng.uniform(0.0, 3.0), scratch / "out")
        else:
            process.wait()
        for path in (scratch / "out/micrographs").glob("[!.]*.mrc"):
            if path.stem in expected:
                wrong += not np.array_equal(read_mrc(path)[0], expected[path.stem])
            else:
                wrong += path.stem != "one"
    wrong += sum(not (scratch / f"out/micrographs/{name}.mrc").exists() for name in expected)
    return Figure(
        "preprocess.half_published",
        wrong,
        f"micrographs published and not whole, or missing in the end, after {kills} kills while the folder fills",
        target="0",
        holds=wrong == 0,
    )


def _kill_after(process: "subprocess.Popen[bytes]", seconds: float, out: Path) -> None:
    """Kill a process some time after it began to write."""
    lock = out / "job.json"
    before = lock.stat().st_mtime_ns if lock.exists() else 0
    while process.poll() is None and (not lock.exists() or lock.stat().st_mtime_ns == before):
        time.sleep(0.02)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
