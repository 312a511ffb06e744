"""Classes of particles by where they lie among principal components, each particle in its own sampling.

The likelihood of a particle at a place m among the components is exp(b·m - m·G m / 2), with b and G of
`locate_particles`. Classes are the k places that make the particles likeliest, as in k-means (Lloyd 1982, begun as
in Arthur and Vassilvitskii 2007), but with a distance that is each particle's own: what its views did not show does
not part it from any class.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verglas.algo.classification.masked_band import MaskedBand
from verglas.algo.classification.subspace import Coordinates, Parts, divide_by_weights
from verglas.errors import UserError
from verglas.shapes import Values

_ROUNDS = 300
_ENOUGH = 1e-6


@dataclass(frozen=True, eq=False)
class Clusters:
    """Classes, the largest first.

    Parameters
    ----------
    centres
        `(k, c)` places.
    numbers
        `(p,)` class of each particle, from 0.
    probabilities
        `(p,)` of that class.
    likelihood
        Logarithm of that of all particles, beside a single class at the mean.
    """

    centres: Float[Tensor, "k c"]
    numbers: Int[Tensor, " p"]
    probabilities: Values
    likelihood: float


def find_clusters(coordinates: Coordinates, count: int, *, restarts: int = 64, seed: int = 0) -> Clusters:
    """Sort particles into classes, the best of several attempts.

    Parameters
    ----------
    coordinates
        Where they lie, along the components that count.
    count
        Of classes, k.
    restarts
        Attempts, each begun from other particles.
    seed
        Of their choice.

    Raises
    ------
    UserError
        When there are fewer particles than classes.
    """
    if len(coordinates.means) < count:
        raise UserError(
            f"{len(coordinates.means)} particles cannot make {count} classes; expected at least {count}"
        )
    generator = torch.Generator().manual_seed(seed)
    attempts = [
        _climb(coordinates, _choose_centres(coordinates.means, count, generator)) for _ in range(restarts)
    ]
    return max(attempts, key=lambda one: one.likelihood)


def average_clusters(
    parts: Parts, numbers: Int[Tensor, " p"], count: int, band: MaskedBand
) -> Float[Tensor, "n z y x"]:
    """Average the particles of each class in their band.

    Parameters
    ----------
    parts
        The particles.
    numbers
        `(p,)` class of each, from 0.
    count
        Of classes, k.
    band
        Where the maps live.

    Returns
    -------
    Tensor
        `(k, n, n, n)`, not masked; zero for a class without particles.
    """
    sums = torch.zeros(count, len(band.counts), dtype=torch.complex64)
    weights = torch.zeros(count, len(band.counts))
    first = 0
    for part in parts():
        mine = numbers[first : first + len(part.data)]
        sums.index_add_(0, mine, part.data)
        weights.index_add_(0, mine, part.weights)
        first += len(part.data)
    return band.to_volumes(divide_by_weights(sums, weights, band))


def _choose_centres(means: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means++: particles far from those already chosen are likelier."""
    chosen = [int(torch.randint(len(means), (1,), generator=generator))]
    while len(chosen) < count:
        squares = torch.cdist(means, means[chosen]).square().amin(1)
        chosen.append(int(torch.multinomial(squares + 1e-30, 1, generator=generator)))
    return means[chosen]


def _climb(coordinates: Coordinates, centres: Tensor) -> Clusters:
    right, precision = coordinates.right, coordinates.precision
    shares = torch.full((len(centres),), 1 / len(centres), dtype=right.dtype)
    unit = torch.eye(right.shape[1], dtype=right.dtype)
    before = -torch.inf
    for _ in range(_ROUNDS):
        logits = _likelihoods(coordinates, centres) + shares.log()
        total = float(torch.logsumexp(logits, 1).sum())
        if total - before < _ENOUGH * len(right):
            break
        before = total
        belongs = torch.softmax(logits, 1)
        shares = belongs.mean(0).clamp(min=1e-9)
        # The prior of one particle at the mean keeps the centre of an empty class where it can be found.
        left = torch.einsum("pk,pij->kij", belongs, precision) + unit
        centres = torch.linalg.solve(left, belongs.T @ right)
    order = shares.argsort(descending=True, stable=True)
    best, numbers = torch.softmax(logits[:, order], 1).max(1)
    return Clusters(centres[order], numbers, best, total)


def _likelihoods(coordinates: Coordinates, centres: Tensor) -> Float[Tensor, "p k"]:
    pulled = torch.einsum("ki,pij,kj->pk", centres, coordinates.precision, centres)
    return coordinates.right @ centres.T - 0.5 * pulled
