"""Beads drawn by direct sums are found where they were drawn."""

import numpy as np
import pytest

from verglas.algo.fiducials.find import estimate_diameter, find_beads
from verglas.errors import UserError


def draw_discs(places_px, diameter_px, shape, *, depth=1.0, noise=0.3, seed=0):
    """Dark discs at xy from the centre, each the mean of 5 x 5 points a pixel."""
    steps = (np.arange(5) - 2) / 5
    y, x = (np.add.outer(np.arange(n) - n // 2, steps).ravel() for n in shape)
    image = np.zeros((len(y), len(x)))
    for place in places_px:
        image[np.hypot(x - place[0], (y - place[1])[:, None]) < diameter_px / 2] = -depth
    image = image.reshape(shape[0], 5, shape[1], 5).mean(axis=(1, 3))
    return (10 + image + np.random.default_rng(seed).normal(0, noise, shape)).astype(np.float32)


PLACES = np.array([[-60.3, 20.7], [10.2, -44.5], [71.9, 60.1], [0.4, 0.8], [-20.0, -70.6]])


@pytest.mark.parametrize("shape", [(200, 220), (201, 199)])
def test_beads_are_found_where_they_are(shape):
    beads = find_beads(draw_discs(PLACES, 9.0, shape), 9.0)
    assert len(beads) == len(PLACES)
    distance = np.linalg.norm(beads.positions_px[:, None] - PLACES, axis=2)
    assert sorted(distance.argmin(axis=1)) == [0, 1, 2, 3, 4]
    assert distance.min(axis=1).max() < 0.5
    assert (np.diff(beads.scores) <= 0).all()


@pytest.mark.parametrize("diameter", [6.0, 9.5, 17.0])
def test_the_diameter_is_found(diameter):
    image = draw_discs(PLACES, diameter, (256, 256))
    assert estimate_diameter([image]) == pytest.approx(diameter, rel=0.15)
    assert find_beads(image).diameter_px == estimate_diameter([image])


def test_the_diameter_is_found_in_images_that_are_averaged_first():
    image = draw_discs(4 * PLACES, 34.0, (1000, 1000), noise=1.0)
    assert estimate_diameter([image]) == pytest.approx(34.0, rel=0.15)


def test_noise_shows_no_beads():
    noise = np.random.default_rng(1).normal(0, 1, (300, 300)).astype(np.float32)
    assert len(find_beads(noise, 8.0)) == 0


def test_a_bright_disc_is_no_bead():
    assert len(find_beads(-draw_discs(PLACES, 9.0, (200, 200)), 9.0)) == 0


@pytest.mark.parametrize("diameter", [1.5, 50.0, np.nan])
def test_diameters_that_cannot_be_are_refused(diameter):
    with pytest.raises(UserError, match="a diameter from 2 pixels to a quarter"):
        find_beads(np.zeros((200, 200), np.float32), diameter)


def test_a_diameter_needs_an_image():
    with pytest.raises(UserError, match="64 x 64"):
        estimate_diameter([])
