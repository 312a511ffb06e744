"""`verglas bench classes`: ribosomes of which half lack a part, told apart by `pca` and `cluster`.

Poses are off by 4° and 6 Å, as a first alignment leaves them. The peer is emClarity's way on the same voxels (Himes
and Zhang 2018): difference maps of each particle and the average in the particle's sampling, both of unit variance;
their singular vectors; k-means on as many of these as do best, which only the truth tells.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster.vq import kmeans2

from verglas.benchmarks.class_cases import RADIUS_ANGSTROM, Mixture, write_mixture
from verglas.benchmarks.harness import Figure
from verglas.errors import UserError
from verglas.io.relion_particles import read_particles
from verglas.runtime import available_cores
from verglas.steps.cluster import CLUSTER_STEP, ClusterParams
from verglas.steps.particle_voxels import read_places, read_voxels
from verglas.steps.pca import PCA_STEP, PcaParams
from verglas.steps.step import RunOptions, run_step

_WANTED = 0.9
_MOST = 6
_RESTARTS = 32


def run(quick: bool) -> Iterator[Figure]:
    """Sort two mixtures, and look for differences where there are none."""
    base = (
        Mixture("nothing", series=1, side=192, copies=24, tilt_step_deg=6.0)
        if quick
        else Mixture("nothing", series=4)
    )
    for lacking in ("small subunit",) if quick else ("small subunit", "stalk"):
        with tempfile.TemporaryDirectory(prefix="verglas-classes-") as scratch:
            yield from _sort(Path(scratch), replace(base, lacking=lacking))
    with tempfile.TemporaryDirectory(prefix="verglas-classes-") as scratch:
        yield from _find_nothing(Path(scratch), base)


def _run_pca(folder: Path, mixture: Mixture) -> dict[str, float]:
    """Run it and return its figures of merit."""
    params = PcaParams(
        particles=folder / "particles.star",
        tilt_series=folder / "tilt_series.star",
        particle_radius=RADIUS_ANGSTROM,
        components=_MOST,
        ice_thickness=mixture.thickness_angstrom,
    )
    report = run_step(PCA_STEP, params, folder / "pca", options=_options())
    if report.summary is None:
        raise UserError(f"`pca` failed: {report.failed}")
    return {name: float(value.value) for name, value in report.summary.values.items()}


def _options() -> RunOptions:
    return RunOptions(quiet=True, device="cpu", workers=available_cores())


def _sort(folder: Path, mixture: Mixture) -> Iterator[Figure]:
    write_mixture(folder, mixture)
    started = time.perf_counter()
    told = _run_pca(folder, mixture)
    params = ClusterParams(pca=folder / "pca", classes=2)
    run_step(CLUSTER_STEP, params, folder / "cluster", options=_options())
    seconds = time.perf_counter() - started
    table = read_particles(folder / "cluster/particles.star")
    lacks = table.extra["vglSpecies"].to_numpy() == "part"
    right = _share_right(table.extra["rlnClassNumber"].to_numpy(dtype=np.int64) - 1, lacks)
    peer = _sort_as_emclarity(folder / "pca", lacks)
    name = f"classes.{mixture.lacking.replace(' ', '_')}"
    yield Figure(
        f"{name}.right",
        right,
        f"of {len(table)} particles in the right class",
        f"at least {_WANTED}",
        right >= _WANTED,
        "difference maps, singular vectors, k-means",
        peer,
        right / peer,
    )
    yield Figure(
        f"{name}.turn",
        told["turn"],
        f"degrees, error of poses as found; {mixture.turn_deg:g} in truth",
    )
    yield Figure(f"{name}.shift", told["shift"], f"Å, likewise; {mixture.shift_angstrom:g} in truth")
    yield Figure(f"{name}.seconds", seconds, "s, both commands")


def _find_nothing(folder: Path, mixture: Mixture) -> Iterator[Figure]:
    write_mixture(folder, mixture)
    found = int(_run_pca(folder, mixture)["components"])
    agreement = float(read_places(folder / "pca").agreement.max())
    yield Figure(
        "classes.nothing.components",
        found,
        f"on which half sets agree where all molecules are alike; the best agrees to {agreement:.2f}",
        "none",
        not found,
    )


def _share_right(numbers: npt.NDArray[np.int64], truth: npt.NDArray[np.bool_]) -> float:
    share = float((numbers == truth).mean())
    return max(share, 1 - share)


def _sort_as_emclarity(folder: Path, truth: npt.NDArray[np.bool_]) -> float:
    """Return the share that is right with as many singular vectors as do best."""
    places = read_places(folder)
    band = places.band
    parts = list(read_voxels([folder / name for name in places.voxels])())
    data, weights = torch.cat([part.data for part in parts]), torch.cat([part.weights for part in parts])
    mean = data.sum(0) / weights.sum(0).clamp(min=1e-30)
    inside = band.mask > 0.5
    seen, expected = (band.to_volumes(maps)[:, inside] for maps in (data, weights * mean))
    differences = _standardise(expected) - _standardise(seen)
    components = torch.linalg.svd(differences - differences.mean(0), full_matrices=False)
    shares = (components.U * components.S).double().numpy()
    rng = np.random.default_rng(0)
    best = 0.0
    for count in range(1, _MOST + 1):
        attempts = [kmeans2(shares[:, :count], 2, minit="++", seed=rng) for _ in range(_RESTARTS)]
        spread = [float(((shares[:, :count] - centres[numbers]) ** 2).sum()) for centres, numbers in attempts]
        best = max(best, _share_right(attempts[int(np.argmin(spread))][1], truth))
    return best


def _standardise(maps: torch.Tensor) -> torch.Tensor:
    centred = maps - maps.mean(1, keepdim=True)
    return centred / centred.std(1, keepdim=True)
