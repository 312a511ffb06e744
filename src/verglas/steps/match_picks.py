"""From the score maps of `match` to its picks."""

import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from verglas.algo.matching.noise import (
    NoiseModel,
    expected_count_threshold,
    find_gap,
    fit_noise,
    independent_threshold,
)
from verglas.algo.matching.peaks import (
    Peaks,
    allow_inside,
    exclude_neighbours,
    find_local_maxima,
    keep_away,
    remove_neighbours,
)
from verglas.algo.matching.refinement import refine_picks
from verglas.errors import UserError
from verglas.model import Particles, Tomogram
from verglas.ops.rotation import matrices_to_euler
from verglas.steps.match_search import FLAT, Scores

if TYPE_CHECKING:
    from verglas.steps.match import MatchParams, Search

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.integer[Any]]

_EDGE = 0.75
"""emClarity's trim of a tomogram's edges, in radii of the particle."""


@dataclass(frozen=True, eq=False)
class Picks:
    """What was picked, and what it was chosen from.

    Parameters
    ----------
    particles
        Highest score first.
    matrices
        `(n, 3, 3)` their orientations, template to specimen.
    templates
        `(n,)` which template.
    maxima
        `(m,)` scores of all maxima that keep the particle's distance.
    noise
        Model of each template's noise; none where there were too few maxima.
    thresholds
        Of each template.
    expected_false
        Maxima of noise expected among the picks.
    warnings
        Sentences for the user.
    """

    particles: Particles
    matrices: FloatArray
    templates: npt.NDArray[np.integer[Any]]
    maxima: tuple[FloatArray, ...]
    noise: tuple[NoiseModel | None, ...]
    thresholds: tuple[float, ...]
    expected_false: float
    warnings: tuple[str, ...]


def correct_background(scores: Scores, templates: int) -> Scores:
    """Subtract from each template's scores what its twin of random phases scores beyond its mean.

    Parameters
    ----------
    scores
        Of the templates and, behind them, of their twins; without twins they are returned as they are.
    templates
        How many templates there are.
    """
    if len(scores.best) == templates:
        return scores
    noise = scores.best[templates:]
    mean = noise.mean(axis=(1, 2, 3), keepdims=True)
    return replace(
        scores, best=scores.best[:templates] - (noise - mean), orientation=scores.orientation[:templates]
    )


def choose_picks(
    search: "Search", scores: Scores, tomogram: Tomogram, params: "MatchParams", number: int
) -> Picks:
    """Pick the maxima above the threshold, and refine them.

    Parameters
    ----------
    search
        What was searched for.
    scores
        What was found.
    tomogram
        Where it was found.
    params
        The rules.
    number
        Of the tomogram, for half sets that follow it.
    """
    voxel = search.volume.voxel_size_angstrom
    radii = np.array(params.particle_radius or (search.radius_angstrom,) * 3) / voxel
    shape = (scores.best.shape[1], scores.best.shape[2], scores.best.shape[3])
    allowed = allow_inside(shape, _EDGE * radii.max())
    allowed &= keep_away(~search.volume.usable, search.radius_angstrom / voxel)
    if not allowed.any():
        raise UserError(
            f"no voxel of the region of tomogram {tomogram.name!r} is a particle's radius away from its edges and "
            "from gold; expected a larger region"
        )
    rotations = search.rotations.numpy()
    count = len(search.templates)
    candidates = find_local_maxima(scores.best, scores.orientation, allowed)
    maxima = candidates.take(exclude_neighbours(candidates, [rotations] * count, np.tile(radii, (count, 1))))
    heights = tuple(maxima.scores[maxima.template == i].astype(float) for i in range(count))
    rules = [
        _find_threshold(one, scores, int(allowed.sum()), len(rotations), count, params) for one in heights
    ]
    thresholds = tuple(threshold for threshold, _, _ in rules)
    kept = maxima.take(maxima.scores >= np.array(thresholds)[maxima.template])
    limit = min(params.max_picks, 2 * params.expected) if params.expected else params.max_picks
    kept = kept.take(np.arange(min(limit, len(kept))))
    particles, matrices = _make_particles(search, kept, tomogram, params, scores.deviation)
    upper, told = _find_upper_hill(particles, kept.template, params)
    rows = upper.copy()
    if params.neighbours:
        near = remove_neighbours(particles.positions_angstrom[rows], matrices[rows], *params.neighbours)
        rows[rows] = near
    models = [model for _, model, _ in rules]
    false = sum(
        _expect_false(model, particles.score, upper, kept.template == i) for i, model in enumerate(models)
    )
    particles = particles.take(rows)
    return Picks(
        particles=_deal_half_sets(particles, params, tomogram.name, number),
        matrices=matrices[rows],
        templates=kept.template[rows],
        maxima=heights,
        noise=tuple(models),
        thresholds=thresholds,
        expected_false=false,
        warnings=tuple(dict.fromkeys(text for text in (*(rule[2] for rule in rules), told) if text)),
    )


def _find_threshold(
    heights: FloatArray, scores: Scores, voxels: int, orientations: int, templates: int, params: "MatchParams"
) -> tuple[float, NoiseModel | None, str]:
    """Threshold of one template, the model behind it, and a warning."""
    model, warning = None, ""
    try:
        model = fit_noise(heights)
    except UserError:
        warning = (
            f"only {len(heights)} maxima of the score keep the particle's distance, too few to fit the noise; the "
            "threshold takes all scores as independent"
        )
    if params.expected is not None:
        return expected_count_threshold(params.expected, voxels, orientations, scores.deviation), model, ""
    share = params.false_positives / templates
    if model is None:
        return independent_threshold(share, voxels, orientations, scores.deviation), None, warning
    return model.find_threshold(share), model, ""


def _find_upper_hill(
    particles: Particles, template: IntArray, params: "MatchParams"
) -> tuple[BoolArray, str]:
    """Tell which picks are not left out as a lower hill of scores, and say so."""
    rows, text = np.ones(len(particles), dtype=bool), ""
    if params.both_hills or params.expected is not None:
        return rows, text
    scores = particles.extra["vglRefinedScore"].to_numpy() if params.refine else particles.score
    for i in np.unique(template):
        gap = find_gap(scores[template == i])
        if gap is not None:
            lower = (template == i) & (scores < gap)
            rows &= ~lower
            text = (
                f"{int(lower.sum())} maxima above the noise form a hill of their own below a score of {gap:.2f} and "
                "were left out as other matter; `both_hills` keeps them"
            )
    return rows, text


def _expect_false(model: NoiseModel | None, scores: FloatArray, upper: BoolArray, mine: BoolArray) -> float:
    """Maxima of noise expected among one template's picks; those left out as a lower hill are no longer there."""
    if model is None or not mine.any():
        return 0.0
    return max(0.0, float(model.expect_above(scores[mine].min())) - int((mine & ~upper).sum()))


def _make_particles(
    search: "Search", peaks: Peaks, tomogram: Tomogram, params: "MatchParams", deviation: float
) -> tuple[Particles, FloatArray]:
    """Particles of the peaks, refined when asked, and their matrices."""
    places = peaks.places.astype(float)
    matrices = search.rotations.numpy()[peaks.orientation]
    refined = np.full(len(peaks), np.nan)
    if params.refine and len(peaks):
        values = search.volume.values
        step = params.angle_step
        if params.angle_search:
            step = max(params.angle_search[1], params.angle_search[3])
        for i, template in enumerate(search.templates):
            rows = np.flatnonzero(peaks.template == i)
            found = refine_picks(
                values,
                template,
                torch.from_numpy(peaks.places[rows]),
                torch.from_numpy(matrices[rows]),
                search.filters,
                step_deg=step or 1.0,
                floor=FLAT,
            )
            places[rows], matrices[rows] = found.places.numpy(), found.matrices.numpy()
            refined[rows] = found.scores.numpy()
    in_part = search.volume.to_tomogram(places) + np.array(search.region.start)
    middle = np.array([n // 2 for n in tomogram.shape])
    xyz = (in_part - middle)[:, ::-1] * tomogram.voxel_size_angstrom + np.array(tomogram.centre_angstrom)
    names = np.array([template.name for template in search.templates], dtype=object)
    extra: dict[str, Any] = {
        "vglTemplate": names[peaks.template],
        "vglScoreDeviations": peaks.scores.astype(float) / deviation,
    }
    if params.refine:
        extra["vglRefinedScore"] = refined
    if tomogram.region:
        extra["vglRegionName"] = np.full(len(peaks), tomogram.region, dtype=object)
    return (
        Particles(
            tomogram_names=np.full(len(peaks), tomogram.name),
            # The last bits of a refinement differ between runs.
            positions_angstrom=xyz.round(4),
            angles_deg=matrices_to_euler(torch.from_numpy(matrices)).numpy().round(4),
            half_set=np.zeros(len(peaks), dtype=np.int64),
            score=peaks.scores.astype(float),
            extra=pd.DataFrame(extra),
        ),
        matrices,
    )


def _deal_half_sets(particles: Particles, params: "MatchParams", name: str, number: int) -> Particles:
    """Assign half sets 1 and 2: at random in equal numbers, or by tomogram."""
    count = len(particles)
    if params.half_sets == "tomogram":
        return replace(particles, half_set=np.full(count, 1 + number % 2))
    # A seed of its own for each tomogram, whatever others there are.
    rng = np.random.default_rng([params.seed, zlib.crc32(name.encode())])
    return replace(particles, half_set=1 + rng.permutation(np.arange(count) % 2))
