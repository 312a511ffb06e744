"""`membranes analyze` and `membranes subtract` on simulated membranes with known truth."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from verglas.algo.membranes.analysis import analyze_average
from verglas.benchmarks.harness import Figure
from verglas.benchmarks.membrane_cases import (
    PIXEL,
    Case,
    Look,
    bilayer,
    make_case,
    measure_distance,
    sample_arc,
    sample_bezier,
)
from verglas.io.mrc import read_mrc
from verglas.io.star import get_table, read_star
from verglas.runtime import available_cores
from verglas.steps.membranes_analyze import MEMBRANES_ANALYZE_STEP, MembranesAnalyzeParams
from verglas.steps.membranes_subtract import MEMBRANES_SUBTRACT_STEP, MembranesSubtractParams
from verglas.steps.step import RunOptions, run_step

QUIET = RunOptions(device="cpu", quiet=True)
PEER = "MemXTerminator, exact geometry given, measured apart"
PEER_LEFT = {0.5: 0.086, 0.1: 0.113, 0.03: 0.122}

ARC = sample_arc((4, -6), 50, 0.004, 220)
BEZIER = sample_bezier([(-110, -20), (-30, 90), (20, -90), (110, 30)])
PAIR = (sample_arc((-34, 0), 8, 0.002, 220), sample_arc((34, 4), 172, 0.003, 220))


def run(quick: bool) -> Iterator[Figure]:
    """Measure averages, then subtract from particles of growing difficulty."""
    yield from _analyze(3 if quick else 12)
    count = 24 if quick else 200
    looks: dict[str, Look] = {
        "snr_0.5": Look((ARC,), 0.5),
        "snr_0.1": Look((ARC,), 0.1),
        "snr_0.03": Look((ARC,), 0.03),
        "bezier_0.1": Look((BEZIER,), 0.1),
        "two_0.1": Look(PAIR, 0.1),
        "asymmetric_0.1": Look((ARC,), 0.1, outer=(5.0, 0.7)),
        "coloured_0.1": Look((ARC,), 0.1, coloured=True),
        "ctf_0.1": Look((ARC,), 0.1, ctf=True),
        "protein_0.5": Look((ARC,), 0.5, protein=True),
        "protein_0.1": Look((ARC,), 0.1, protein=True),
        "protein_0.03": Look((ARC,), 0.03, protein=True),
    }
    chosen = ("snr_0.1", "protein_0.1") if quick else tuple(looks)
    with tempfile.TemporaryDirectory(prefix="verglas-membranes-") as scratch:
        for name in chosen:
            case = make_case(Path(scratch) / name, looks[name], count=count)
            yield from _subtract(case, looks[name], name)
        yield _measure_rate(Path(scratch) / chosen[0], 2000 if quick else 5000)


def _analyze(count: int) -> Iterator[Figure]:
    """Analyse averages of 128 pixels with noise 0.15 of a leaflet's height; leaflets differ in width."""
    rng = np.random.default_rng(3)
    size = 128
    y, x = (one.ravel() - size // 2 for one in np.mgrid[:size, :size])
    points = np.stack([x, y], axis=1).astype(float)
    errors = []
    for number in range(count):
        theta, kappa = rng.uniform(0, 180), float(rng.uniform(-0.008, 0.008)) * (number > 0)
        gap, sigmas = rng.uniform(14, 22), rng.uniform(3, 4.5, 2)
        centre = rng.uniform(-8, 8, 2)
        path = sample_arc((centre[0], centre[1]), theta, kappa, 150)
        distance = measure_distance(path, points)
        grey = bilayer(distance, gap, sigmas[0], sigmas[1]).reshape(size, size)
        image = grey + rng.normal(0, 0.15, (size, size))
        found = analyze_average(image, PIXEL, shape="arc")[0]
        arc = found.shape.arc
        foot = int(np.argmin(((path[:, ::-1] + size // 2 - np.array(arc.centre_yx)) ** 2).sum(axis=1)))
        ahead = path[min(foot + 1, len(path) - 1)] - path[max(foot - 1, 0)]
        angle = np.rad2deg(np.arctan2(ahead[0], ahead[1])) - arc.theta_deg
        leaflets = found.leaflets
        same_side = (arc.locate(points[:, ::-1] + size // 2)[0] * distance).sum() > 0
        widths = np.array([leaflets.sigma1, leaflets.sigma2])[:: 1 if same_side else -1]
        errors.append(
            (
                abs((angle + 90) % 180 - 90),
                abs(leaflets.distance - gap),
                float(np.abs(widths / sigmas - 1).max()),
                abs(abs(arc.kappa) - abs(kappa)),
            )
        )
    worst = np.max(errors, axis=0)
    for name, value, unit, limit, peer in (
        ("angle", worst[0], "degrees", 0.2, 1.0),
        ("distance", worst[1], "pixels", 0.5, 1.0),
        ("width", worst[2], "of the width", 0.1, None),
        ("curvature", worst[3], "1/pixel", 0.0005, 0.001),
    ):
        yield Figure(
            f"membranes.{name}_error",
            float(value),
            f"{unit}, the worst of {count} averages",
            target=f"at most {limit:g}",
            holds=bool(value <= limit),
            peer=PEER.replace("exact geometry given, ", "") if peer else "",
            peer_value=peer,
            ratio=peer / float(value) if peer else None,
        )


def _run(folder: Path, out: str, *, workers: int = 1, ctf: bool = False) -> float:
    if not (folder / "analyzed").exists():
        params = MembranesAnalyzeParams(averages=folder / "averages.mrcs")
        if run_step(MEMBRANES_ANALYZE_STEP, params, folder / "analyzed", options=QUIET).failed:
            raise RuntimeError("membranes analyze failed")
    subtract = MembranesSubtractParams(
        particles=folder / "particles.star", membranes=folder / "analyzed/membranes.star", ctf=ctf
    )
    started = time.perf_counter()
    options = RunOptions(device="cpu", quiet=True, workers=workers)
    report = run_step(MEMBRANES_SUBTRACT_STEP, subtract, folder / out, options=options)
    if report.failed:
        raise RuntimeError(f"membranes subtract failed: {report.failed}")
    return time.perf_counter() - started


def _subtract(case: Case, look: Look, name: str) -> Iterator[Figure]:
    _run(case.folder, "subtracted", ctf=look.ctf)
    after = np.concatenate(
        [read_mrc(one) for one in sorted((case.folder / "subtracted/stacks").glob("*.mrcs"))]
    )
    taken = case.images - after
    left = np.sqrt(_energy(case.membranes - taken) / _energy(case.membranes))
    limit = PEER_LEFT[look.snr] / 2
    yield Figure(
        f"membranes.left_{name}",
        float(left),
        f"of the membranes' root mean square, {len(after)} particles of {after.shape[-1]}²",
        target=f"at most {limit:.4f}, half of the peer's",
        holds=bool(left <= limit),
        peer=PEER,
        peer_value=PEER_LEFT[look.snr],
        ratio=float(PEER_LEFT[look.snr] / left),
    )
    slopes = (taken * case.membranes).sum(axis=(1, 2)) / (case.membranes**2).sum(axis=(1, 2))
    bias = float(slopes.mean() - 1)
    yield Figure(
        f"membranes.scale_bias_{name}",
        bias,
        f"of the membranes, the mean; a standard error is {slopes.std() / np.sqrt(len(slopes)):.4f}",
        target="within 0.01",
        holds=abs(bias) < 0.01,
    )
    if look.protein:
        kept = 1 + float(((case.membranes - taken) * case.proteins).sum() / _energy(case.proteins))
        yield Figure(
            f"membranes.protein_{name}",
            kept,
            "of the protein's density is there afterwards",
            target="at least 0.97",
            holds=kept >= 0.97,
        )


def _energy(images: npt.NDArray[Any]) -> float:
    return float((images**2).sum())


def _measure_rate(folder: Path, count: int) -> Figure:
    """Subtract from the same particles many times over, with profiles, tables and pictures."""
    blocks = read_star(folder / "particles.star")
    import pandas as pd

    from verglas.io.star import write_star

    rows = get_table(blocks, "particles", "particles.star")
    many = pd.concat([rows] * max(1, count // len(rows)), ignore_index=True)
    write_star(folder / "particles.star", {**blocks, "particles": many})
    seconds = _run(folder, "many", workers=available_cores())
    rate = len(many) / seconds
    return Figure(
        "membranes.rate",
        rate,
        f"particles of 192² pixels a second on {available_cores()} cores, {len(many)} in all",
        target="at least 100",
        holds=rate >= 100,
        peer="MemXTerminator on this processor, measured apart",
        peer_value=5.0,
        ratio=rate / 5.0,
    )
