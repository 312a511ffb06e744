"""Averages about frequent views."""

import numpy as np
import torch

from verglas.algo.subtraction.class_averages import AVERAGES, Averages, finish_averages

SIZE, COUNT = 32, 60


def test_particles_of_one_view_are_turned_onto_each_other() -> None:
    # One view with in-plane angles psi; a spot at (9, 0) of the reference's view lies at Rz(-psi) of that.
    psi = np.linspace(0, 330, COUNT)
    angles = np.stack([np.full(COUNT, 20.0), np.full(COUNT, 50.0), psi], axis=1)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    turn = np.deg2rad(-psi)
    places = 9 * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    images = np.exp(-((x - places[:, :1, None]) ** 2 + (y - places[:, 1:, None]) ** 2) / 6)
    slices = torch.fft.rfft2(torch.from_numpy(images).float())
    k = torch.fft.fftfreq(SIZE)[:, None] + torch.arange(SIZE // 2 + 1) / SIZE
    change = torch.polar(torch.ones_like(k), -2 * torch.pi * k * (SIZE // 2)).expand_as(slices)
    averages = Averages(angles, SIZE)
    averages.add(np.arange(COUNT), slices, 0.5 * slices, change)
    found = finish_averages(*averages.take_sums())
    assert len(found) == 1 < AVERAGES
    leader = averages.leaders[0]
    expected = images[leader]
    assert np.corrcoef(found[0, 0].ravel(), expected.ravel())[0, 1] > 0.98
    np.testing.assert_allclose(found[0, 1], 0.5 * found[0, 0], atol=1e-6)
    np.testing.assert_allclose(found[0, 0].max(), expected.max(), rtol=0.2)
