"""Models of the membranes of each class, made from the table of `membranes analyze` and from the particles."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from verglas.errors import UserError
from verglas.files import write_text

if TYPE_CHECKING:
    from verglas.algo.membranes.particles import CurveMaps
    from verglas.algo.membranes.sets import ClassModel, Particle, Transfer
    from verglas.io.flat_particles import FlatParticles
    from verglas.model.membrane import MembraneRecord

FloatArray = npt.NDArray[np.float64]

SAMPLE = 200
"""Particles of a class from which its profiles are found."""

_WIDTH, _WIDTH_WITH_CTF = 1.5, 2.5
"""To how many leaflet distances a membrane reaches at least; with fringes of the transfer function farther."""

_CLEAR = 3.2
"""Widths of a leaflet beyond which nothing is left of it."""


def build_maps(records: "list[MembraneRecord]", box: int, pixel: float, *, ctf: bool) -> "CurveMaps":
    """Map the curves of one class in the pixels of its particles."""
    from verglas.algo.membranes.curves import Arc
    from verglas.algo.membranes.particles import map_curves, scale_shape

    shapes, widths = [], []
    for one in records:
        factor = (one.pixel_size_angstrom or pixel) / pixel
        control = None if one.control_yx is None else np.array(one.control_yx)
        arc = Arc(one.centre_yx, one.theta_deg, one.kappa)
        shapes.append(scale_shape(arc, control, size=one.size or box, box=box, factor=factor))
        # The baseline is taken from beyond the wider leaflet.
        width = max(_WIDTH * one.distance, one.distance + _CLEAR * max(one.sigma1, one.sigma2))
        widths.append(max(width, _WIDTH_WITH_CTF * one.distance if ctf else 0.0) * factor)
    return map_curves(shapes, widths, box)


def start_class(records: "list[MembraneRecord]", maps: "CurveMaps", pixel: float) -> "ClassModel":
    """Make the model that a search begins with."""
    from verglas.algo.membranes.sets import start_model

    leaflets = []
    for one in records:
        factor = (one.pixel_size_angstrom or pixel) / pixel
        leaflets.append((one.distance * factor, one.sigma1 * factor, one.sigma2 * factor))
    return start_model(maps, leaflets)


def find_models(
    particles: "FlatParticles", records: "list[MembraneRecord]", box: int, path: Path, *, ctf: bool
) -> "tuple[dict[int, ClassModel], str]":
    """Find, or read from `path` where an item before did, the model of every class that has membranes.

    What is read must have been made from the same table, averages and stacks, whose digest is returned: a job that
    was killed may go on with others. Every part would write the same, so it does not matter which does.
    """
    from verglas.algo.membranes.sets import learn_class

    pixel = particles.table.particles.optics[0].pixel_size_angstrom
    source = _digest(particles, records, ctf=ctf)
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known = told["classes"] if told.get("made_from") == source else {}
    models = {}
    for number in sorted({one.average for one in records}):
        own = [one for one in records if one.average == number]
        rows = np.flatnonzero(particles.class_number == number)
        if not len(rows):
            continue
        maps = build_maps(own, box, pixel, ctf=ctf)
        start = start_class(own, maps, pixel)
        if str(number) in known:
            models[number] = _unpack(known[str(number)], start)
            continue
        chosen = rows[np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int)]
        first = start

        def give(chosen: npt.NDArray[Any] = chosen, first: "ClassModel" = first) -> "Iterator[Particle]":
            return read_batch(particles, chosen, first, ctf=ctf)

        models[number] = learn_class(start, give)
    if not known:
        classes = {str(number): _pack(model) for number, model in models.items()}
        write_text(path, json.dumps({"made_from": source, "classes": classes}))
    return models, source


def _pack(model: "ClassModel") -> dict[str, Any]:
    """Return what was learnt of a class, for a file."""
    assert model.power is not None
    assert model.crowded is not None
    return {
        "profiles": [one.coefficients.tolist() for one in model.profiles],
        "spread_px": model.spread.tolist(),
        "noise_power": model.power.tolist(),
        "crowded_blocks": np.argwhere(model.crowded).tolist(),
        "blocks": list(model.crowded.shape),
    }


def _unpack(told: dict[str, Any], start: "ClassModel") -> "ClassModel":
    """Return the model of a class of which `_pack` told."""
    from dataclasses import replace

    from verglas.algo.membranes.profiles import Profile

    crowded = np.zeros(told["blocks"], dtype=bool)
    crowded[tuple(np.array(told["crowded_blocks"], dtype=int).reshape(-1, 3).T)] = True
    return replace(
        start,
        profiles=tuple(Profile(np.array(one)) for one in told["profiles"]),
        spread=np.array(told["spread_px"]),
        power=np.array(told["noise_power"]),
        crowded=crowded,
    )


def _digest(particles: "FlatParticles", records: "list[MembraneRecord]", *, ctf: bool) -> str:
    """Digest of curves, poses, classes and transfer functions, and of the stacks' sizes and times."""
    digest = hashlib.blake2b(digest_size=16)
    table = particles.table.particles
    for array in (table.angles_deg, table.origins_angstrom, table.ctf, particles.class_number):
        digest.update(np.ascontiguousarray(array).tobytes())
    for path in dict.fromkeys(image.path for image in table.images):
        stat = path.stat()
        digest.update(f"{path} {stat.st_size} {stat.st_mtime_ns}".encode())
    digest.update(repr((records, table.optics, ctf)).encode())
    return digest.hexdigest()


def read_batch(
    particles: "FlatParticles", rows: npt.NDArray[Any], model: "ClassModel", *, ctf: bool
) -> "Iterator[Particle]":
    """Read particles of one class, some at a time."""
    from verglas.algo.membranes.sets import Particle
    from verglas.io.mrc import read_images

    table = particles.table.particles
    for start in range(0, len(rows), 64):
        part = rows[start : start + 64]
        for row, image in zip(part, read_images([table.images[row] for row in part]), strict=True):
            if not np.isfinite(image).all():
                raise UserError(
                    f"particle {int(row) + 1} ({particles.table.names[row]}) has values that are not finite"
                )
            pixel = table.optics[table.optics_group[row]].pixel_size_angstrom
            origin = table.origins_angstrom[row] / pixel
            psi = float(table.angles_deg[row, 2])
            transfers = make_transfers(particles, int(row), model, psi) if ctf else None
            yield Particle(image, psi, (float(origin[1]), float(origin[0])), transfers)


def make_transfers(
    particles: "FlatParticles", row: int, model: "ClassModel", psi_deg: float
) -> "tuple[Transfer, ...]":
    """Return what the transfer function across each membrane makes of the coefficients of its profile.

    A curve that bends little is a straight line over the reach of the transfer function, whose transform lies on
    the line across it: the values along that line filter the profile.
    """
    import torch

    from verglas.ops.ctf import astigmatic_defocus, ctf_1d

    table = particles.table.particles
    optics = table.optics[table.optics_group[row]]
    u, v, angle, phase, bfactor, scale = table.ctf[row]
    transfers = []
    for normal, profile in zip(model.maps.normals_yx, model.profiles, strict=True):
        direction = np.rad2deg(np.arctan2(normal[0], normal[1])) - psi_deg
        defocus = astigmatic_defocus(
            *(torch.tensor(one, dtype=torch.float64) for one in (direction, u, v, angle))
        )
        count = len(profile.coefficients)
        padded = 4 * count
        frequency = torch.fft.rfftfreq(padded, optics.pixel_size_angstrom, dtype=torch.float64)
        values = scale * ctf_1d(
            frequency,
            defocus,
            voltage_kv=optics.voltage_kv,
            cs_mm=optics.cs_mm,
            amplitude_contrast=optics.amplitude_contrast,
            phase_shift_deg=float(phase),
            bfactor_a2=float(bfactor),
        )
        unit = torch.fft.rfft(torch.eye(count, dtype=torch.float64), n=padded, dim=0)
        transfers.append(torch.fft.irfft(unit * values.reshape(-1, 1), n=padded, dim=0)[:count].numpy())
    return tuple(transfers)
