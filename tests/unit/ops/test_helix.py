"""Tubes of balls on known lattices."""

import numpy as np
import pytest

from verglas.errors import UserError
from verglas.ops.helix import Tube, find_tube, read_lattice, unroll_tube

STRANDS, STARTS, REPEAT, RADIUS = 11, 2, 4.2, 9.0
SHAPE = (40, 110, 56)
CENTRE = np.array([27.0, 55.0, 20.5])
DIRECTION = np.array([0.25, 0.95, 0.05]) / np.linalg.norm([0.25, 0.95, 0.05])


@pytest.fixture(scope="module")
def volume():
    """Balls on a right-handed helix of two starts, by their sum at every voxel, in noise."""
    first = np.cross(DIRECTION, [0.0, 0.0, 1.0])
    first /= np.linalg.norm(first)
    second = np.cross(DIRECTION, first)
    place = []
    for strand in range(STRANDS):
        angle = 2 * np.pi * strand / STRANDS
        for step in np.arange(-20, 21):
            height = (step + STARTS * strand / STRANDS) * REPEAT
            around = np.cos(angle) * first + np.sin(angle) * second
            place.append(CENTRE + height * DIRECTION + RADIUS * around)
    density = np.zeros(SHAPE, np.float32)
    for x, y, z in place:
        low = np.floor([z, y, x]).astype(int) - 4
        if (low < 0).any() or (low + 9 > SHAPE).any():
            continue
        grid = np.indices((9, 9, 9)).reshape(3, -1).T + low
        ball = np.exp(-((grid - [z, y, x]) ** 2).sum(axis=1) / (2 * 1.4**2)).reshape(9, 9, 9)
        density[low[0] : low[0] + 9, low[1] : low[1] + 9, low[2] : low[2] + 9] += ball
    return density + np.random.default_rng(0).normal(0, 0.5, SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def tube(volume):
    return find_tube(volume)


def test_the_axis_and_the_radius_are_found(tube):
    turn = np.degrees(np.arccos(min(1.0, abs(tube.direction @ DIRECTION))))
    offset = tube.centre - CENTRE
    beside = np.linalg.norm(offset - (offset @ DIRECTION) * DIRECTION)
    assert turn < 0.5
    assert beside < 0.3
    assert abs(tube.radius - RADIUS) < 0.4


def test_the_lattice_is_read_off_with_its_hand(volume, tube):
    lattice = read_lattice(unroll_tube(volume, tube), 3.0, 8.0)
    assert abs(lattice.repeat - REPEAT) < 0.02 * REPEAT
    assert (lattice.strands, lattice.starts) == (STRANDS, STARTS)
    assert lattice.repeat_power > 5
    (best, first), (_, second) = lattice.rank_strands()[:2]
    assert best == STRANDS
    assert first > 1.5 * second


def test_a_mirrored_tube_has_the_other_hand(volume, tube):
    mirrored = volume[::-1].copy()
    flip = np.array([1.0, 1.0, -1.0])
    there = Tube(
        np.array([tube.centre[0], tube.centre[1], SHAPE[0] - 1 - tube.centre[2]]),
        tube.direction * flip,
        tube.radius,
        tube.contrast,
    )
    lattice = read_lattice(unroll_tube(mirrored, there), 3.0, 8.0)
    assert (lattice.strands, lattice.starts) == (STRANDS, -STARTS)


def test_what_cannot_be_read_is_refused(volume, tube):
    with pytest.raises(UserError, match="constant density holds no tube"):
        find_tube(np.ones((8, 8, 8), np.float32))
    with pytest.raises(UserError, match="needs a tube of 400 voxels"):
        read_lattice(unroll_tube(volume, tube), 3.0, 100.0)
