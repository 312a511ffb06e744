"""Particles made from known maps by direct sums: what is found of them."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch

from verglas.algo.classification.clusters import average_clusters, find_clusters
from verglas.algo.classification.masked_band import MaskedBand
from verglas.algo.classification.subspace import (
    PartParticles,
    fit_subspace,
    locate_particles,
    measure_agreement,
)
from verglas.errors import UserError
from verglas.ops.band import choose_band
from verglas.ops.masks import soft_sphere_mask
from verglas.ops.rotation import random_rotations

SIZE, COUNT = 20, 240
SIGNAL = 2e-2


@pytest.fixture(scope="module")
def band():
    found = choose_band(SIZE, 1.0, 2.5)
    mask = soft_sphere_mask((found.size,) * 3, 6.0, 2.0)
    return MaskedBand(found, mask, mask)


def blob(band, centre, sigma, moved=(0.0, 0.0, 0.0)):
    """A Gaussian, its transform by NumPy, at the voxels of the band."""
    line = np.arange(len(band.mask)) - len(band.mask) // 2
    z, y, x = np.meshgrid(line, line, line, indexing="ij")
    places = [axis - at - by for axis, at, by in zip((x, y, z), centre, moved, strict=True)]
    values = np.exp(-sum(axis**2 for axis in places) / (2 * sigma**2))
    transform = np.fft.rfftn(np.fft.ifftshift(values)).astype(np.complex64).reshape(-1)
    return torch.from_numpy(transform)[band.band.index]


BODY = [
    (1.0, (0, 0, 0), 2.0),
    (-0.6, (2, 1, 0), 1.0),
    (0.8, (-2, 2, 1), 1.0),
    (0.8, (1, -2, -2), 1.0),
    (-0.6, (-1, -1, 2), 1.0),
]
"""Weight, middle and width of the blobs of a molecule."""


def body(band, moved=(0.0, 0.0, 0.0), turned=0.0):
    """The molecule, turned about z by radians and then moved."""
    c, s = math.cos(turned), math.sin(turned)
    return sum(
        weight * blob(band, (c * x - s * y, s * x + c * y, z), sigma, moved)
        for weight, (x, y, z), sigma in BODY
    )


def show(band, maps, generator, strength=SIGNAL):
    """Each map seen by a wedge of its own, which lacks a third of what there is, with noise."""
    index = band.band.index
    size = len(band.mask)
    axis = torch.fft.fftfreq(size, 1 / size)
    z, y, x = torch.meshgrid(axis, axis, torch.arange(size // 2 + 1.0), indexing="ij")
    places = torch.stack([x, y, z], -1).reshape(-1, 3)[index]
    places = places / places.norm(dim=-1, keepdim=True)
    turned = torch.einsum("pij,kj->pki", random_rotations(len(maps), generator).float(), places)
    weights = strength * (turned[..., 2].abs() < math.sin(math.radians(45))).float() + 1e-9
    noise = torch.view_as_complex(torch.randn(len(maps), len(index), 2, generator=generator) / math.sqrt(2))
    # In the plane kx = 0 the noise of a real volume has mates.
    mates = band.confine(noise, torch.ones_like(band.mask))
    noise = torch.where(band.counts == 0.5, math.sqrt(2) * mates, noise)
    return PartParticles(weights * maps + weights.sqrt() * noise, weights)


def parts_of(particles, rows=slice(None), size=100):
    data, weights = particles.data[rows], particles.weights[rows]

    def read():
        for first in range(0, len(data), size):
            yield PartParticles(data[first : first + size], weights[first : first + size])

    return read


@pytest.fixture(scope="module")
def mixture(band):
    """Three kinds: the body, with a blob at one place, with a blob at another; contrasts that vary."""
    generator = torch.Generator().manual_seed(1)
    kinds = torch.randint(3, (COUNT,), generator=generator)
    contrasts = 1 + 0.15 * torch.randn(COUNT, generator=generator)
    extras = torch.stack(
        [0 * body(band), 0.8 * blob(band, (4, 0, 0), 1.0), 0.8 * blob(band, (0, -4, 2), 1.0)]
    )
    maps = contrasts[:, None] * body(band) + extras[kinds]
    return show(band, maps, generator), kinds, contrasts, extras[1:]


@pytest.fixture(scope="module")
def found(band, mixture):
    return fit_subspace(parts_of(mixture[0]), band, 4)


def halves_of(particles, band, components):
    return [
        fit_subspace(parts_of(particles, slice(half, None, 2)), band, components).components
        for half in (0, 1)
    ]


def flatten(band, maps):
    """Columns whose dot products are those of the maps."""
    return torch.view_as_real(maps * band.counts.sqrt()).flatten(1).T.double().numpy()


def test_components_are_the_differences_there_are(band, mixture, found):
    """Up to what contrast and poses account for."""
    particles, kinds, _, extras = mixture
    shares = torch.bincount(kinds)[1:] / len(kinds)
    mean = (body(band) + shares.to(extras) @ extras)[None]
    changes = band.pose_maps(mean)
    given = flatten(band, torch.cat([mean, changes, *(band.pose_maps(one[None]) for one in changes)]))
    truth = flatten(band, extras)
    truth = truth - given @ np.linalg.lstsq(given, truth, rcond=None)[0]
    bases = [np.linalg.qr(columns)[0] for columns in (flatten(band, found.components[:2]), truth)]
    assert np.linalg.svd(bases[0].T @ bases[1])[1].min() > 0.9
    agreement = measure_agreement(found.components, *halves_of(particles, band, 4), band)
    assert float(agreement[:2].min()) > 0.6
    assert float(agreement[2:].max()) < 0.4
    lengths = found.amplitudes(band)
    assert bool((lengths[:-1] >= lengths[1:]).all())


def test_contrasts_are_found(band, mixture, found):
    particles, _, contrasts, _ = mixture
    places = locate_particles(parts_of(particles), band, found)
    assert float(torch.corrcoef(torch.stack([places.contrast, contrasts.double()]))[0, 1]) > 0.9
    assert float(found.spreads[0]) == pytest.approx(0.15, abs=0.05)


def test_kinds_are_told_apart(band, mixture, found):
    particles, kinds, _, extras = mixture
    places = locate_particles(parts_of(particles), band, found).take([0, 1])
    clusters = find_clusters(places, 3)
    right = [torch.tensor(order)[clusters.numbers] == kinds for order in permutations(range(3))]
    assert max(float(one.float().mean()) for one in right) > 0.97
    counts = torch.bincount(clusters.numbers).tolist()
    assert counts == sorted(counts, reverse=True)
    averages = average_clusters(parts_of(particles), clusters.numbers, 3, band)
    order = torch.tensor([int(kinds[clusters.numbers == one].mode().values) for one in range(3)])
    truth = band.to_volumes(body(band) + torch.cat([0 * extras[:1], extras])[order])
    for average, true in zip(averages, truth, strict=True):
        inside = band.mask > 0.5
        assert float(torch.corrcoef(torch.stack([average[inside], true[inside]]))[0, 1]) > 0.9


def test_parts_may_be_read_in_any_size(band, mixture):
    particles = mixture[0]
    one, three = (fit_subspace(parts_of(particles, size=size), band, 2, rounds=3) for size in (COUNT, 97))
    torch.testing.assert_close(one.mean, three.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(one.spreads, three.spreads, rtol=1e-3, atol=1e-6)


def test_molecules_that_are_alike_have_no_component(band):
    """Neither noise nor what is wrong with poses is taken for a difference; the latter is measured."""
    generator = torch.Generator().manual_seed(2)
    moves = 0.4 * torch.randn(COUNT, 3, generator=generator)
    maps = torch.stack([body(band, moved=move) for move in moves.tolist()])
    particles = show(band, maps, generator)
    found = fit_subspace(parts_of(particles), band, 3)
    assert float(measure_agreement(found.components, *halves_of(particles, band, 3), band).max()) < 0.5
    np.testing.assert_allclose(found.spreads[1:4], 0.4, atol=0.1)


def test_changes_of_pose_are_those_of_a_moved_and_a_turned_body(band):
    step, angle = 0.05, 0.02
    mean = body(band)[None]
    changes = band.pose_maps(mean)
    moved = (body(band, moved=(0, step, 0)) - body(band, moved=(0, -step, 0))) / (2 * step)
    np.testing.assert_allclose(changes[1], moved, atol=0.02 * float(moved.abs().max()))
    about_z = (body(band, turned=angle) - body(band, turned=-angle)) / (2 * angle)
    # Detail at the edge of the band rings through the cube, so that this is no more than nearly so.
    pair = flatten(band, torch.stack([changes[5], about_z]))
    assert np.corrcoef(pair.T)[0, 1] > 0.99
    assert np.linalg.norm(pair[:, 0]) == pytest.approx(np.linalg.norm(pair[:, 1]), rel=0.03)


def test_more_classes_than_particles_are_refused(band, mixture, found):
    particles = PartParticles(mixture[0].data[:2], mixture[0].weights[:2])
    places = locate_particles(parts_of(particles), band, found)
    with pytest.raises(UserError, match="2 particles cannot make 3 classes"):
        find_clusters(places, 3)
