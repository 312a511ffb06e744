"""The pictures of `average`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from verglas.model import Particles
from verglas.steps.half_curves import CURVES_CAPTION
from verglas.steps.step import Figure

if TYPE_CHECKING:
    import torch

    FloatArray = np.ndarray[Any, np.dtype[Any]]

_CAPTIONS = {
    "average": "sections across z of the filtered average, from below to above, and its projections; dense is bright",
    "fsc": CURVES_CAPTION,
    "directions": "from where the particles are seen; gaps show as streaks in the map",
    "sections": "central sections of the unfiltered half maps and of the average, with the outline of the mask",
    "sampling": "how well the particles fill Fourier space: in dark directions the map is least sure",
    "counts": "particles of each tilt series",
    "scores": "scores of the particles of each series",
}


def draw_average(
    maps: "Mapping[str, FloatArray]",
    weights: "torch.Tensor",
    particles: Sequence[Particles],
    pixel_size_angstrom: float,
    folder: Path,
) -> list[Figure]:
    """Draw all but the curves, whose picture lies in the folder.

    Parameters
    ----------
    maps
        `half1`, `half2`, `average` and `mask`.
    weights
        `(N, N, N // 2 + 1)` of both half sets.
    particles
        Of each series.
    pixel_size_angstrom
        Of a voxel.
    folder
        The job folder.
    """
    from verglas.figures import averages

    figures = folder / "figures"
    averages.draw_map(maps["average"], pixel_size_angstrom, figures / "average.png")
    angles = np.concatenate([one.angles_deg for one in particles])
    averages.draw_directions(angles, figures / "directions.png")
    shown = [(name, maps[name]) for name in ("half1", "half2", "average")]
    averages.draw_sections(shown, maps["mask"], pixel_size_angstrom, figures / "sections.png")
    planes = cut_planes(weights)
    averages.draw_sampling(planes, 1 / (2 * pixel_size_angstrom), figures / "sampling.png")
    counts = [
        (str(one.tomogram_names[0]), int((one.half_set == 1).sum()), int((one.half_set == 2).sum()))
        for one in particles
    ]
    averages.draw_counts(counts, figures / "counts.png")
    drawn = ["average", "fsc", "directions", "sections", "sampling", "counts"]
    known = [(str(one.tomogram_names[0]), one.score[np.isfinite(one.score)]) for one in particles]
    if any(len(values) for _, values in known):
        averages.draw_scores(known, figures / "scores.png", label="score")
        drawn.append("scores")
    return [Figure(f"figures/{kind}.png", _CAPTIONS[kind]) for kind in drawn]


def cut_planes(weights: "torch.Tensor") -> "list[tuple[str, FloatArray]]":
    """Cut three central planes out of half weights, each voxel over the mean of its shell, origin in the middle."""
    import torch

    from verglas.ops.statistics import fourier_shells

    size = len(weights)
    shell = fourier_shells((size,) * 3, weights.device).reshape(-1)
    mean = torch.bincount(shell, weights.reshape(-1).double()) / torch.bincount(shell).clamp(min=1)
    share = (weights.reshape(-1) / mean[shell].clamp(min=1e-30)).reshape(weights.shape)
    share = torch.where(shell.reshape(weights.shape) <= size // 2, share, torch.nan).float()
    halves = {"ky and kx": share[0], "kz and kx": share[:, 0]}
    planes = {}
    for name, half in halves.items():
        mates = half[:, 1:-1].flip(1)
        # The mate of (k, kx) is (-k, -kx).
        mirrored = torch.cat([mates[:1], mates[1:].flip(0)])
        planes[name] = torch.cat([half[:, :-1], half[:, -1:], mirrored], dim=1)
    planes["kz and ky"] = share[:, :, 0]
    return [(name, torch.fft.fftshift(plane).cpu().numpy()) for name, plane in planes.items()]
