"""`verglas bench resume`: kill a job again and again, and compare its bytes with those of one that lived.

Ten items on two workers. Each kill is a SIGKILL at a random moment, by turns of the main process alone and of
the workers with it. A job that ends before its kill is compared and begun anew.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from verglas.benchmarks.harness import Figure
from verglas.files import atomic_path
from verglas.steps.step import (
    Context,
    Estimate,
    Item,
    ItemResult,
    Params,
    RunOptions,
    Step,
    Summary,
    Value,
    run_step,
)
from verglas.steps.step import Figure as Picture

ITEMS = 10


class NoiseParams(Params):
    """Write volumes of smooth noise."""

    size: Annotated[int, Field(ge=8, le=1024, description="side of a volume, pixels")] = 96


def _list_items(params: NoiseParams) -> list[Item]:
    return [Item(f"noise_{seed:02d}", seed) for seed in range(1, ITEMS + 1)]


def _run_item(item: Item, params: NoiseParams, context: Context) -> ItemResult:
    from verglas.io.mrc import write_mrc

    noise = np.random.default_rng(item.record).normal(size=(params.size,) * 3)
    frequency = np.fft.fftfreq(params.size)
    radius = frequency[:, None, None] ** 2 + frequency[:, None] ** 2 + frequency[: params.size // 2 + 1] ** 2
    smooth = np.fft.irfftn(np.fft.rfftn(noise) * np.exp(-200 * radius), s=noise.shape, axes=(0, 1, 2))
    names = (f"volumes/{item.name}.mrc", f"curves/{item.name}.txt")
    write_mrc(context.folder / names[0], smooth.astype(np.float32), voxel_size_angstrom=1.0)
    with atomic_path(context.folder / names[1]) as temporary:
        np.savetxt(temporary, smooth.std(axis=(1, 2)))
    return ItemResult(names, {"deviation": smooth.std()})


def _summarise(results: dict[str, ItemResult], params: NoiseParams, folder: Path) -> Summary:
    import pandas as pd

    from verglas.figures.style import house_style, make_figure, save_figure
    from verglas.io.star import write_star

    deviations = [result.values["deviation"] for result in results.values()]
    table = pd.DataFrame({"vglName": list(results), "vglDeviation": deviations})
    write_star(folder / "noise.star", {"noise": table})
    with house_style():
        figure = make_figure(5, 3)
        figure.subplots().plot(deviations)
        save_figure(figure, folder / "figures" / "deviations.png")
    return Summary(
        figures=[Picture("figures/deviations.png", "Standard deviation of each volume.")],
        values={"mean_deviation": Value(float(np.mean(deviations)))},
        tables=["noise.star"],
    )


def _estimate(items: list[Item], params: NoiseParams) -> Estimate:
    voxels = params.size**3
    return Estimate(64 * voxels, 4 * voxels * len(items), 3e-7 * voxels * len(items))


NOISE_STEP = Step("noise", NoiseParams, _list_items, _run_item, _summarise, _estimate)


def run(quick: bool) -> Iterator[Figure]:
    """Kill and continue, three times when `quick` and ten times when not."""
    kills, size = (3, 64) if quick else (10, 160)
    chance = random.Random()
    with tempfile.TemporaryDirectory(prefix="verglas-resume-") as scratch:
        whole = Path(scratch) / "whole"
        started = time.monotonic()
        _start(whole, size).wait()
        duration = time.monotonic() - started
        expected = _digest(whole)
        compared, differing, landed, amid, job = 0, 0, 0, 0, 0
        while True:
            folder = Path(scratch) / f"job_{job}"
            process = _start(folder, size)
            wait = chance.uniform(0.1, 1.0) * duration
            if landed < kills and _kill_after(process, wait, alone=landed % 2 == 0):
                landed += 1
                amid += 0 < len(list(folder.glob("items/[!.]*.json"))) < ITEMS
                continue
            process.wait()
            compared += len(expected)
            differing += len(expected.items() ^ _digest(folder).items())
            if landed == kills:
                break
            job += 1
    yield Figure(
        "resume.identical",
        1.0 - differing / compared,
        "fraction of files",
        target=f"1 after {kills} kills",
        holds=differing == 0,
    )
    yield Figure("resume.kills", float(landed), "kills", target=f"{kills}", holds=landed == kills)
    yield Figure("resume.kills_amid_items", float(amid), "kills")
    yield Figure("resume.files_compared", float(compared), "files")


def _start(folder: Path, size: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", f"from {__name__} import _run; _run({str(folder)!r}, {size})"]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)


def _run(folder: str, size: int) -> None:
    """Do the job or what is left of it; what the killed process runs."""
    run_step(NOISE_STEP, NoiseParams(size=size), folder, options=RunOptions(workers=2, quiet=True))


def _kill_after(process: "subprocess.Popen[bytes]", seconds: float, *, alone: bool) -> bool:
    """Kill the process, with its workers unless `alone`; whether it was still running."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        if alone:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def _digest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but those that hold times, by path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.parent.name != "items"
        and path.name not in {"job.json", "log.txt", ".job.lock", ".start.lock"}
    }
