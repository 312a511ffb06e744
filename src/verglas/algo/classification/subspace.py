"""Principal components of the differences among particles, each particle in its own sampling.

A particle, brought into the frame of the reference, is known by D = Σ c F / σ² and W = Σ c² / σ² at each Fourier
voxel: what its views showed there, and how well. It is taken for a sample of

    D = W (a μ + Σ e_j P_j + Σ z_i V_i) + noise of variance W,    a ~ N(1, s²),  e_j ~ N(0, t_j²),  z_i ~ N(0, 1)

with the mean map μ, the particle's contrast a, the six changes P_j of the mean as it moves and turns, which take up
what is wrong with the particle's pose, and components V, confined to a mask. μ, V, s and t are those of the greatest
likelihood, found by expectation and maximisation (Tipping and Bishop 1999, probabilistic principal components; for
maps Punjani and Fleet 2021). What a particle's views did not show counts for nothing, where emClarity subtracts the
reference times the sampling function (Himes and Zhang 2018) and leaves the rest to the decomposition. As V is
confined, the noise outside the mask does not matter; nor does the second order of what is wrong with the poses, for V
is kept orthogonal to that too.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from verglas.algo.classification.masked_band import MaskedBand, as_real
from verglas.ops.band import BandValues
from verglas.shapes import Values

_ROUNDS = 100
_ENOUGH = 1e-2
_LEAST_SHARE = 0.05
_LEAST_VARIANCE = 1e-4
_ALIKE = 1e-9
_FIRST_AMPLITUDE = 0.1
_FIRST_SPREADS = (0.2, *[0.3] * 3, *[math.radians(3.0)] * 3)
_GIVEN = len(_FIRST_SPREADS)
"""The mean and the changes of its pose come before the components."""


@dataclass(frozen=True, eq=False)
class PartParticles:
    """Some of the particles.

    Parameters
    ----------
    data
        `(p, k)` D.
    weights
        `(p, k)` W.
    """

    data: BandValues
    weights: Float[Tensor, "p k"]


Parts = Callable[[], Iterator[PartParticles]]
"""Reads all particles once, part by part, so that they need not be in memory together."""


@dataclass(frozen=True, eq=False)
class Subspace:
    """The mean and the components of particles.

    Parameters
    ----------
    mean
        `(1, k)` μ.
    components
        `(c, k)` V, orthogonal to each other, to μ and to P, the strongest first; each as long as the standard
        deviation of the particles along it.
    spreads
        `(7,)` standard deviations: s of the contrast, and t of what is wrong with the poses, three in voxels and
        three in radians.
    gains
        `(r,)` by how much each round raised the logarithm of the likelihood, for each particle.
    """

    mean: BandValues
    components: BandValues
    spreads: Values
    gains: Values

    @property
    def maps(self) -> BandValues:
        """`(1 + c, k)` the mean and the components."""
        return torch.cat([self.mean, self.components])

    def amplitudes(self, band: MaskedBand) -> Values:
        """`(c,)` length of each component over that of the mean, float64."""
        squares = band.multiply(self.components, self.components).diagonal()
        return (squares / band.multiply(self.mean, self.mean)[0, 0]).sqrt()


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Where particles lie in a subspace.

    Parameters
    ----------
    contrast
        `(p,)` a.
    means
        `(p, c)` z as it is expected from the particle and from the prior.
    right
        `(p, c)` b: the likelihood of z is exp(b·z - z·G z / 2), contrast and pose as found.
    precision
        `(p, c, c)` G.
    """

    contrast: Values
    means: Float[Tensor, "p c"]
    right: Float[Tensor, "p c"]
    precision: Float[Tensor, "p c c"]

    def take(self, components: list[int]) -> "Coordinates":
        """Keep some components only, as if the others were zero."""
        return Coordinates(
            self.contrast,
            self.means[:, components],
            self.right[:, components],
            self.precision[:, components][:, :, components],
        )


def fit_subspace(
    parts: Parts, band: MaskedBand, components: int, *, seed: int = 0, rounds: int = _ROUNDS
) -> Subspace:
    """Find the components of the greatest likelihood.

    Parameters
    ----------
    parts
        The particles.
    band
        Where the maps live.
    components
        How many, c.
    seed
        Of the maps that the search begins with.
    rounds
        At most so many; it ends when a round raises the logarithm of the likelihood by less than 0.01 a particle.
    """
    mean = _average(parts, band)
    maps = _clear(_guess(mean, band, components, seed), mean, band)
    maps = torch.cat([mean, band.pose_maps(mean), maps])
    spreads = torch.tensor(_FIRST_SPREADS, dtype=torch.float64)
    gains, before = [], -math.inf
    for _ in range(rounds):
        sums = _expect(parts, band, maps, spreads)
        centre, moments = sums.shares / sums.count, sums.moments / sums.count
        solved = _maximise(sums, maps, band)
        # What all have in common is the mean: their mean contrast is one, and their mean share of a component none.
        mean = centre[0] * solved[:1] + centre[None, _GIVEN:].to(solved) @ solved[1:]
        within = moments - centre[:, None] * centre
        maps = _orthogonalise(mean, solved[1:], within[_GIVEN:, _GIVEN:], band)
        variances = torch.cat([within[:1, 0] / centre[0] ** 2, moments.diagonal()[1:_GIVEN]])
        spreads = variances.clamp(min=_LEAST_VARIANCE).sqrt()
        gain, before = sums.likelihood / sums.count - before, sums.likelihood / sums.count
        gains.append(gain)
        # To confine and clear maps is no part of maximisation: near its end it takes back what that gained.
        if gain < _ENOUGH:
            break
    found = maps[_GIVEN:]
    # Of either sign the one that adds more than it takes away.
    peaks = band.to_volumes(found).flatten(1)
    signs = peaks.gather(1, peaks.abs().argmax(1, keepdim=True)).sign()
    return Subspace(maps[:1], found * signs, spreads, torch.tensor(gains[1:], dtype=torch.float64))


def locate_particles(parts: Parts, band: MaskedBand, subspace: Subspace) -> Coordinates:
    """Find where the particles lie.

    Parameters
    ----------
    parts
        The particles.
    band
        Where the maps live.
    subspace
        The components.
    """
    maps = torch.cat([subspace.mean, band.pose_maps(subspace.mean), subspace.components])
    found = []
    for part in parts():
        right, precision = _compare(part, band, maps)
        mean, _ = _estimate(right, precision, subspace.spreads)
        taken = precision[:, _GIVEN:, :_GIVEN] @ mean[:, :_GIVEN, None]
        found.append(
            Coordinates(
                mean[:, 0],
                mean[:, _GIVEN:],
                right[:, _GIVEN:] - taken[..., 0],
                precision[:, _GIVEN:, _GIVEN:],
            )
        )
    return Coordinates(
        torch.cat([one.contrast for one in found]),
        torch.cat([one.means for one in found]),
        torch.cat([one.right for one in found]),
        torch.cat([one.precision for one in found]),
    )


def measure_agreement(
    components: BandValues, first: BandValues, second: BandValues, band: MaskedBand
) -> Values:
    """Tell how far two sets of components that were found apart agree on each of a third.

    A component is projected into the space of either set, and the two projections are correlated. One that is there
    in both halves of the data has a correlation near 1, one made of noise a correlation near 0: the noise of one half
    is not in the other.

    Parameters
    ----------
    components
        `(c, k)` of all particles.
    first, second
        `(c, k)` of each half set, orthogonal.
    band
        Where the maps live.

    Returns
    -------
    Tensor
        `(c,)` float64.
    """
    seen = [_project(components, other, band) for other in (first, second)]
    cross = band.multiply(seen[0], seen[1]).diagonal()
    squares = [band.multiply(one, one).diagonal() for one in seen]
    return cross / (squares[0] * squares[1]).clamp(min=1e-300).sqrt()


def divide_by_weights(sums: BandValues, weights: Float[Tensor, "n k"], band: MaskedBand) -> BandValues:
    """Divide sums of D by sums of W, each of which counts as a twentieth of its shell's mean at least.

    Parameters
    ----------
    sums, weights
        `(n, k)`.
    band
        Where the maps live.
    """
    least = _LEAST_SHARE * band.average_shells(weights.T).T
    quotient: BandValues = sums / torch.maximum(weights, least).clamp(min=1e-30)
    return quotient


def _average(parts: Parts, band: MaskedBand) -> BandValues:
    sums, weights = torch.tensor(0.0), torch.tensor(0.0)
    for part in parts():
        sums, weights = sums + part.data.sum(0), weights + part.weights.sum(0)
    return band.confine(divide_by_weights(sums[None], weights[None], band), band.support)


def _guess(mean: BandValues, band: MaskedBand, count: int, seed: int) -> BandValues:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, mean.shape[1], 2, generator=generator)
    maps = band.confine(torch.view_as_complex(values).to(mean.device), band.mask)
    lengths = band.multiply(maps, maps).diagonal().sqrt()
    target = _FIRST_AMPLITUDE * float(band.multiply(mean, mean)) ** 0.5
    scaled: BandValues = maps * (target / lengths).to(maps.real)[:, None]
    return scaled


def _clear(maps: BandValues, mean: BandValues, band: MaskedBand) -> BandValues:
    """Take out of maps what contrast and poses make of the mean, poses to second order."""
    changes = band.pose_maps(mean)
    given = torch.cat([mean, changes, *(band.pose_maps(change[None]) for change in changes)])
    given = band.confine(given, band.mask)
    # To turn and then to move is not to move and then to turn, but nearly: as many axes as there are at least.
    values, vectors = torch.linalg.eigh(band.multiply(given, given))
    kept = values > _ALIKE * values[-1]
    axes = (vectors[:, kept] / values[kept].sqrt()).T.to(given) @ given
    cleared: BandValues = maps - band.multiply(maps, axes).to(maps) @ axes
    return cleared


def _project(maps: BandValues, onto: BandValues, band: MaskedBand) -> BandValues:
    """Project maps into the space of others, which are orthogonal."""
    lengths = band.multiply(onto, onto).diagonal().clamp(min=1e-300)
    projected: BandValues = (band.multiply(maps, onto) / lengths).to(maps) @ onto
    return projected


def _compare(
    part: PartParticles, band: MaskedBand, maps: BandValues
) -> tuple[Float[Tensor, "p m"], Float[Tensor, "p m m"]]:
    """Return b `(p, m)` and G `(p, m, m)` of the likelihood exp(b·u - u·G u / 2) of the shares u of maps, float64."""
    right = 2 * (as_real(part.data) @ as_real(maps * band.counts).T).double()
    rows, columns = torch.triu_indices(len(maps), len(maps))
    products = 2 * band.counts * (maps[rows].conj() * maps[columns]).real
    return right, _unfold((part.weights @ products.T).double(), len(maps))


def _unfold(pairs: Float[Tensor, "p t"], size: int) -> Float[Tensor, "p m m"]:
    """Make symmetric matrices of their upper triangles."""
    rows, columns = torch.triu_indices(size, size)
    whole = pairs.new_zeros(len(pairs), size, size)
    whole[:, rows, columns] = pairs
    whole[:, columns, rows] = pairs
    return whole


def _estimate(right: Tensor, precision: Tensor, spreads: Values) -> tuple[Tensor, Tensor]:
    """Mean `(p, m)` and covariance `(p, m, m)` of the shares, the prior included."""
    prior = torch.ones(right.shape[1], dtype=right.dtype, device=right.device)
    prior[:_GIVEN] = spreads**-2
    covariance = torch.linalg.inv(precision + torch.diag(prior))
    expected = right.clone()
    expected[:, 0] += prior[0]
    return (covariance @ expected[..., None])[..., 0], covariance


@dataclass(frozen=True, eq=False)
class _Sums:
    """What maximisation needs of all: per voxel Σ W E[u uᵀ] and Σ D E[u]; Σ E[u uᵀ], Σ E[u], and how likely."""

    left: Float[Tensor, "k t"]
    right: Float[Tensor, "k m 2"]
    moments: Float[Tensor, "m m"]
    shares: Float[Tensor, " m"]
    likelihood: float
    count: int


def _expect(parts: Parts, band: MaskedBand, maps: BandValues, spreads: Values) -> _Sums:
    count, voxels = maps.shape
    rows, columns = torch.triu_indices(count, count)
    left = maps.real.new_zeros(voxels, len(rows))
    right = maps.real.new_zeros(voxels, count, 2)
    moments = torch.zeros(count, count, dtype=torch.float64, device=maps.device)
    shares = torch.zeros(count, dtype=torch.float64, device=maps.device)
    likelihood, particles = 0.0, 0
    for part in parts():
        forces, precision = _compare(part, band, maps)
        mean, covariance = _estimate(forces, precision, spreads)
        second = covariance + mean[:, :, None] * mean[:, None, :]
        left += part.weights.T @ second[:, rows, columns].to(left)
        right += (as_real(part.data).T @ mean.to(left)).reshape(voxels, 2, count).transpose(1, 2)
        moments += second.sum(0)
        shares += mean.sum(0)
        likelihood += 0.5 * float((forces * mean).sum() + mean[:, 0].sum() / spreads[0] ** 2)
        likelihood += 0.5 * float(torch.linalg.slogdet(covariance)[1].sum())
        particles += len(mean)
    likelihood -= particles * float(0.5 / spreads[0] ** 2 + spreads.log().sum())
    return _Sums(left, right, moments, shares, likelihood, particles)


def _maximise(sums: _Sums, maps: BandValues, band: MaskedBand) -> BandValues:
    """Solve for the mean and the components, voxel by voxel, and confine them to where they may be."""
    size = len(maps)
    free = [0, *range(_GIVEN, size)]
    whole = _unfold(sums.left, size)
    poses = torch.view_as_real(maps[1:_GIVEN].T.contiguous())
    right = sums.right[:, free] - whole[:, free, 1:_GIVEN] @ poses
    left = whole[:, free][:, :, free]
    known = left.diagonal(dim1=1, dim2=2)
    lacking = (_LEAST_SHARE * band.average_shells(known) - known).clamp(min=1e-30)
    left = left + torch.diag_embed(lacking)
    solved = torch.view_as_complex(torch.linalg.solve(left, right).contiguous())
    found = solved.T.contiguous()
    return torch.cat([band.confine(found[:1], band.support), band.confine(found[1:], band.mask)])


def _orthogonalise(
    mean: BandValues, components: BandValues, spread: Float[Tensor, "c c"], band: MaskedBand
) -> BandValues:
    """Turn components into the principal axes of the particles' shares of them, so that these have unit variance.

    Parameters
    ----------
    mean, components
        `(1, k)` and `(c, k)`.
    spread
        Covariance of the shares.
    band
        Where the maps live.

    Returns
    -------
    Tensor
        `(7 + c, k)` mean, changes of its pose, components.
    """
    cleared = _clear(components, mean, band)
    # Shares of the maps below have unit covariance; the maps' singular vectors are the axes.
    root = torch.linalg.cholesky(spread + 1e-12 * torch.eye(len(spread)).to(spread))
    scaled = root.T.to(cleared) @ cleared
    vectors = torch.linalg.eigh(band.multiply(scaled, scaled)).eigenvectors
    return torch.cat([mean, band.pose_maps(mean), vectors.flip(1).T.to(cleared) @ scaled])
