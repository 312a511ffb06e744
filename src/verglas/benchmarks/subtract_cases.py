"""Particles of a ribosome whose projections, poses and transfer functions RELION made: another route than ours."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter

from verglas.algo.simulation.phantoms import make_demo_ribosome
from verglas.algo.simulation.render import render_volume
from verglas.io.mrc import read_mrc, write_mrc
from verglas.io.star import get_table, read_star, write_star
from verglas.ops.rotation import (
    euler_to_matrices,
    matrices_to_euler,
    random_rotations,
    rotation_vectors_to_matrices,
)

FloatArray = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Case:
    """Simulated particles.

    Parameters
    ----------
    folder
        With `map.mrc`, `keep.mrc` (the small subunit), `remove.mrc`, and `particles.star` with its stack.
    removed, kept
        `(n, y, x)` what the two parts are in each image, at its contrast and without noise.
    contrast
        `(n,)` true scale of each.
    pixel_size_angstrom
        Of all.
    noise
        Standard deviation of the noise, in those of the signal at contrast 1.
    """

    folder: Path
    removed: Images
    kept: Images
    contrast: FloatArray
    pixel_size_angstrom: float
    noise: float


def make_case(
    folder: Path, count: int, size: int, *, pose_error_deg: float = 0.0, noise: float = 3.0, seed: int = 0
) -> Case | None:
    """Make particles of contrasts from 0.5 to 1.5; none where RELION is not installed.

    Parameters
    ----------
    folder
        Where everything is written.
    count
        Particles.
    size
        Side of the images, pixels; they show 380 Å.
    pose_error_deg
        Root mean square angle by which the poses in the table are wrong.
    noise
        Standard deviation of white noise, in those of the images without noise inside the molecule's circle.
    """
    if shutil.which("relion_project") is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixel = 380.0 / size
    _write_maps(folder, size, pixel)
    angles = matrices_to_euler(random_rotations(count, torch.Generator().manual_seed(seed)).double()).numpy()
    table = _make_table(angles, size, pixel, rng)
    write_star(folder / "truth.star", table)
    parts = {name: _project(folder, name) for name in ("kept", "removed")}
    contrast = rng.uniform(0.5, 1.5, count)
    y, x = np.mgrid[:size, :size] - size // 2
    circle = np.hypot(y, x) * pixel < 130
    signal = float((parts["kept"] + parts["removed"])[:, circle].std())
    scaled = {name: (images * contrast[:, None, None]).astype(np.float32) for name, images in parts.items()}
    images = scaled["kept"] + scaled["removed"]
    images += rng.normal(0, noise * signal, images.shape).astype(np.float32)
    write_mrc(folder / "particles.mrcs", images, voxel_size_angstrom=pixel, is_stack=True)
    rows: Any = table["particles"]
    rows["rlnImageName"] = [f"{row + 1:06d}@{folder / 'particles.mrcs'}" for row in range(count)]
    wrong = rng.normal(0, pose_error_deg / np.sqrt(3), (count, 3))
    turned = rotation_vectors_to_matrices(torch.from_numpy(wrong)) @ euler_to_matrices(
        torch.from_numpy(angles)
    )
    for label, values in zip(_ANGLES, matrices_to_euler(turned).numpy().T, strict=True):
        rows[label] = values
    write_star(folder / "particles.star", table)
    return Case(folder, scaled["removed"], scaled["kept"], contrast, pixel, noise)


_ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")


def _write_maps(folder: Path, size: int, pixel: float) -> None:
    """Write the ribosome, and masks that part its subunits at the cleft."""
    body = make_demo_ribosome(14.0)
    volume = render_volume(body, (size, size, size), pixel)
    volume /= volume.max()
    x = (np.arange(size) - size // 2) * pixel
    # The cleft lies across x; what lies left of it is the small subunit.
    small = 1 / (1 + np.exp((x - _find_cleft(volume, x)) / pixel))
    around = gaussian_filter((gaussian_filter(volume, 8.0 / pixel) > 0.05).astype(np.float32), 1.0)
    keep = np.broadcast_to(small, volume.shape) * around
    remove = np.broadcast_to(1 - small, volume.shape) * around
    for name, data in (("map", volume), ("keep", keep), ("remove", remove)):
        write_mrc(
            folder / f"{name}.mrc", np.clip(data, None, 1).astype(np.float32), voxel_size_angstrom=pixel
        )
    # What RELION's mask keeps is all that is not removed.
    write_mrc(folder / "stays.mrc", (1 - np.clip(remove, 0, 1)).astype(np.float32), voxel_size_angstrom=pixel)
    write_mrc(folder / "removed.mrc", (volume * remove).astype(np.float32), voxel_size_angstrom=pixel)
    write_mrc(folder / "kept.mrc", (volume * (1 - remove)).astype(np.float32), voxel_size_angstrom=pixel)


def _find_cleft(volume: Images, x: npt.NDArray[np.floating]) -> float:
    """X at which least density lies, between the subunits."""
    profile = gaussian_filter(volume.sum(axis=(0, 1)).astype(float), 1.0)
    middle = np.abs(x + 10) < 35
    return float(x[middle][np.argmin(profile[middle])])


def _make_table(angles: FloatArray, size: int, pixel: float, rng: np.random.Generator) -> dict[str, Any]:
    count = len(angles)
    optics = {
        "rlnOpticsGroup": [1],
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnVoltage": [300.0],
        "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.1],
        "rlnImagePixelSize": [pixel],
        "rlnImageSize": [size],
        "rlnImageDimensionality": [2],
    }
    defocus = rng.uniform(10000, 25000, count)
    rows: dict[str, Any] = {
        "rlnImageName": [f"{row + 1:06d}@none.mrcs" for row in range(count)],
        "rlnMicrographName": [f"mic_{row // 50:03d}.mrc" for row in range(count)],
        "rlnOpticsGroup": np.ones(count, dtype=int),
    }
    rows |= dict(zip(_ANGLES, angles.T, strict=True))
    rows |= {
        "rlnOriginXAngst": rng.uniform(-3, 3, count) * pixel,
        "rlnOriginYAngst": rng.uniform(-3, 3, count) * pixel,
        "rlnDefocusU": defocus + 150,
        "rlnDefocusV": defocus - 150,
        "rlnDefocusAngle": rng.uniform(0, 180, count),
        "rlnRandomSubset": np.arange(count) % 2 + 1,
        "rlnClassNumber": np.ones(count, dtype=int),
        "rlnNormCorrection": np.ones(count),
    }
    return {"optics": pd.DataFrame(optics), "particles": pd.DataFrame(rows)}


def _project(folder: Path, part: str) -> Images:
    run_relion(
        ["relion_project", "--i", f"{part}.mrc", "--ang", "truth.star", "--o", f"truth_{part}", "--ctf"],
        folder,
    )
    return read_mrc(folder / f"truth_{part}.mrcs")


def run_relion(command: list[str], folder: Path) -> None:
    """Run a program of RELION in a folder.

    Raises
    ------
    RuntimeError
        When it fails.
    """
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {(done.stdout + done.stderr).strip()[-500:]}")


def read_subtracted(star: Path, folder: Path) -> Images:
    """Read the images of a table, in its order, whatever program wrote it."""
    rows = get_table(read_star(star), "particles", star)
    stacks: dict[str, Images] = {}
    images = []
    for name in rows["rlnImageName"]:
        number, _, file = str(name).partition("@")
        if file not in stacks:
            stacks[file] = read_mrc(folder / file)
        images.append(stacks[file][int(number) - 1])
    return np.stack(images)
