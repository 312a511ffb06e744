"""`verglas bench star`: a table of a million particles, there and back, and through RELION's eyes."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from verglas.benchmarks.harness import NO_PEER, Figure, measure_time
from verglas.benchmarks.peers import STARFILE, run_peer
from verglas.io.relion_particles import read_particles, write_particles
from verglas.model import Particles


def run(quick: bool) -> Iterator[Figure]:
    """Write and read `particles.star`, ours beside starfile's, and count what RELION reads."""
    count = 100_000 if quick else 1_000_000
    particles = _make_particles(count)
    with tempfile.TemporaryDirectory(prefix="verglas-star-") as scratch:
        path = Path(scratch) / "particles.star"
        write = measure_time(lambda: write_particles(path, particles), rounds=3).median
        read = measure_time(lambda: read_particles(path), rounds=3).median
        same = np.array_equal(read_particles(path).positions_angstrom, particles.positions_angstrom)
        told = run_peer("starfile", STARFILE, source=str(path), result=str(Path(scratch) / "theirs.star"))
        relion = _count_with_relion(path)
    for verb, seconds, limit in (("write", write, 15.0), ("read", read, 5.0)):
        yield Figure(
            f"star.{verb}",
            seconds,
            "s",
            target=f"at most {limit:g} s for a million",
            holds=seconds <= limit * count / 1e6,
            peer="starfile" if told else NO_PEER,
            peer_value=told[verb] if told else None,
            ratio=told[verb] / seconds if told else None,
        )
    yield Figure("star.same_values", float(same), "1 is yes", target="1", holds=same)
    yield Figure(
        "star.rows_read_by_relion",
        relion,
        "rows",
        target=f"{count}",
        holds=None if relion is None else relion == count,
        peer="relion_star_printtable" if relion is not None else NO_PEER,
    )


def _make_particles(count: int) -> Particles:
    generator = np.random.default_rng(0)
    return Particles(
        tomogram_names=np.array([f"TS_{i:02d}" for i in generator.integers(0, 40, count)]),
        # RELION writes six digits, too.
        positions_angstrom=generator.normal(0, 2000, (count, 3)).round(6),
        angles_deg=generator.uniform(-180, 180, (count, 3)).round(6),
        half_set=generator.integers(1, 3, count),
        score=generator.random(count).round(6),
    )


def _count_with_relion(path: Path) -> float | None:
    if shutil.which("relion_star_printtable") is None:
        return None
    command = ["relion_star_printtable", str(path), "data_particles", "rlnAngleRot"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(sum(bool(line.strip()) for line in done.stdout.splitlines()))
