"""Files and pictures of `match`."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from verglas.algo.matching.template import OVERSAMPLING
from verglas.files import write_text
from verglas.model import Particles, TiltSeries, Tomogram
from verglas.ops.interpolation import affine_transform_volume
from verglas.steps.match_picks import Picks
from verglas.steps.match_search import Scores
from verglas.steps.picks import emclarity_geometry

if TYPE_CHECKING:
    from verglas.steps.match import Search

FloatArray = npt.NDArray[np.float32]

CAPTIONS = {
    "histogram": "scores of all maxima that keep the particle's distance, the noise that was fitted to them, and the "
    "threshold; molecules are what rises above the noise",
    "picks": "sections 200 Å thick with the picks in them, smoothed to 60 Å; dark is dense",
    "gallery": "projections along z of slabs of half the diameter through the best picks, turned back to the "
    "template's orientation, beside the mean of all and the template; dark is dense",
}

_GALLERY = 24


def write_search(
    name: str,
    search: "Search",
    scores: Scores,
    picks: Picks,
    tomogram: Tomogram,
    series: TiltSeries,
    folder: Path,
) -> list[str]:
    """Write picks as STAR, emClarity's csv and an IMOD model, and the maps of scores and orientations."""
    from verglas.io.emclarity_motives import particles_to_emclarity, write_motives
    from verglas.io.imod_model import make_imod_model, write_imod_model
    from verglas.io.mrc import write_mrc
    from verglas.io.relion_particles import write_particles

    particles = picks.particles
    paths = [f"particles/{name}.star", f"emclarity/{name}.csv", f"models/{name}.mod"]
    write_particles(folder / paths[0], particles, {series.name: series})
    pixel = series.pixel_size_angstrom
    geometry = emclarity_geometry(tomogram, pixel)
    write_motives(folder / paths[1], particles_to_emclarity(particles, geometry, pixel_size_angstrom=pixel))
    # 3dmod's pixel i is centred at i + 0.5 in x and y.
    voxels = place_in_tomogram(particles, tomogram) + np.array([0.5, 0.5, 0.0])
    width, height, depth = tomogram.shape[::-1]
    model = make_imod_model(
        [voxels] if len(voxels) else [],
        (width, height, depth),
        pixel_size_angstrom=tomogram.voxel_size_angstrom,
    )
    write_imod_model(folder / paths[2], model)
    for i, template in enumerate(search.templates):
        suffix = f"_{template.name}" if len(search.templates) > 1 else ""
        maps = {"": scores.best[i], "_orientations": scores.orientation[i].astype(np.float32) + 1}
        for kind, values in maps.items():
            paths.append(f"scores/{name}{suffix}{kind}.mrc")
            write_mrc(
                folder / paths[-1],
                values,
                voxel_size_angstrom=search.volume.voxel_size_angstrom,
                label=_LABELS[kind],
            )
    return paths


_LABELS = {
    "": "verglas: best score of a template",
    "_orientations": "verglas: line of orientations.txt that has it",
}


def place_in_tomogram(particles: Particles, tomogram: Tomogram) -> npt.NDArray[np.float64]:
    """`(n, 3)` xyz voxels of particles, counted from 0."""
    offsets = particles.positions_angstrom - np.array(tomogram.centre_angstrom)
    middle = np.array([n // 2 for n in reversed(tomogram.shape)])
    return np.asarray(offsets / tomogram.voxel_size_angstrom + middle)


def write_orientations(path: Path, matrices: npt.NDArray[np.float64]) -> None:
    """Write RELION's rot, tilt and psi of each orientation, a line each, in the order of the maps' numbers."""
    from verglas.ops.rotation import matrices_to_euler

    angles = matrices_to_euler(torch.from_numpy(matrices)).numpy()
    # Adding 0 takes the sign off a zero.
    write_text(
        path, "".join("\t".join(f"{angle + 0.0:.3f}" for angle in row) + "\n" for row in angles.round(3))
    )


def draw_search(name: str, search: "Search", picks: Picks, tomogram: Tomogram, folder: Path) -> list[str]:
    """Draw histogram, picks and gallery; the latter only of what there is."""
    from verglas.figures.matching import draw_gallery, draw_histogram, draw_picks
    from verglas.io.mrc import read_mrc

    paths = {kind: f"figures/{name}_{kind}.png" for kind in CAPTIONS}
    models = [None if one is None else (one.sigma, one.tries, one.count) for one in picks.noise]
    draw_histogram(
        [
            (t.name, h, m, limit)
            for t, h, m, limit in zip(search.templates, picks.maxima, models, picks.thresholds, strict=True)
        ],
        folder / paths["histogram"],
    )
    volume = read_mrc(tomogram.path)
    voxel = tomogram.voxel_size_angstrom
    places = place_in_tomogram(picks.particles, tomogram)
    draw_picks(volume, places, voxel, search.radius_angstrom, folder / paths["picks"], title=name)
    if not len(picks.particles):
        del paths["gallery"]
        return list(paths.values())
    boxes, mean = cut_aligned(volume, places, picks.matrices, search.radius_angstrom / voxel)
    size = boxes.shape[-1]
    scale = search.volume.voxel_size_angstrom / OVERSAMPLING / voxel
    template = affine_transform_volume(
        search.templates[0].fine, torch.eye(3) * scale, order="cubic", out_shape=(size, size, size)
    )
    half = max(1, round(search.radius_angstrom / voxel / 2))
    slab = slice(size // 2 - half, size // 2 + half + 1)
    draw_gallery(
        boxes[:, slab].sum(1),
        mean[slab].sum(0),
        template[slab].sum(0).numpy(),
        picks.particles.score[: len(boxes)],
        voxel,
        folder / paths["gallery"],
    )
    return list(paths.values())


def cut_aligned(
    volume: FloatArray, places: npt.NDArray[np.float64], matrices: npt.NDArray[np.floating], radius: float
) -> tuple[FloatArray, FloatArray]:
    """Cut picks out of a tomogram, turned back to the template: the first of them, and the mean of all.

    Parameters
    ----------
    volume
        `(z, y, x)`.
    places
        `(n, 3)` xyz voxels.
    matrices
        `(n, 3, 3)` template to specimen.
    radius
        Of the particle, voxels.
    """
    size = 2 * int(np.ceil(1.2 * radius)) + 2
    reach = int(np.ceil(size * 0.87)) + 1
    total = torch.zeros(size, size, size)
    boxes: list[FloatArray] = []
    for place, matrix in zip(places[:, ::-1], np.asarray(matrices, dtype=float), strict=True):
        corner = np.rint(place).astype(int) - reach
        part = np.zeros((2 * reach + 1,) * 3, np.float32)
        first, last = corner.clip(0), np.minimum(corner + 2 * reach + 1, volume.shape)
        z, y, x = (slice(a, b) for a, b in zip(first - corner, last - corner, strict=True))
        source = volume[first[0] : last[0], first[1] : last[1], first[2] : last[2]]
        part[z, y, x] = source - source.mean()
        # Back to the template: the place goes to the centre, then the inverse rotation.
        affine = np.eye(4)
        affine[:3, :3] = matrix.T
        affine[:3, 3] = -matrix.T @ (place - np.rint(place))[::-1]
        box = affine_transform_volume(
            torch.from_numpy(part), torch.from_numpy(affine), order="linear", out_shape=(size, size, size)
        )
        total += box
        if len(boxes) < _GALLERY:
            boxes.append(box.numpy())
    return np.stack(boxes), (total / len(places)).numpy()
