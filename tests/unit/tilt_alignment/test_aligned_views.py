"""Aligned views against plane waves evaluated where the geometry says, and against IMOD's transforms."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from verglas.algo.tilt_alignment.aligned_views import align_record, align_view
from verglas.io.emclarity import tilt_series_to_emclarity
from verglas.model import ImageReference, Optics, TiltSeries

SHAPE = (150, 161)


def series_of(**changes: object) -> TiltSeries:
    base = TiltSeries(
        "TS",
        Optics(4.0),
        SHAPE,
        (ImageReference(Path("a.mrc"), 0),),
        np.array([20.0]),
        z_rot_deg=np.array([-74.3]),
        x_shift_angstrom=np.array([17.7]),
        y_shift_angstrom=np.array([-41.3]),
        exposure_e_per_a2=np.array([3.0]),
        defocus_u_angstrom=np.array([30000.0]),
        defocus_v_angstrom=np.array([29000.0]),
        defocus_angle_deg=np.array([40.0]),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def waves(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Plane waves up to 0.8 of Nyquist, in pixels from index 0."""
    rng = np.random.default_rng(3)
    total = np.zeros(np.broadcast(x, y).shape)
    for _ in range(30):
        k, turn, phase = rng.uniform(0.02, 0.4), rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
        total += np.cos(2 * np.pi * k * (x * np.cos(turn) + y * np.sin(turn)) + phase)
    return total


@pytest.mark.parametrize("magnification", [np.eye(2), np.array([[1.01, 0.004], [-0.003, 0.995]])])
def test_aligned_views_are_what_imod_transforms_say(magnification: np.ndarray) -> None:
    series = series_of(magnification=magnification[None])
    y, x = np.indices(SHAPE).astype(float)
    raw = waves(x, y)
    aligned, sampled = align_view(torch.from_numpy(raw.astype(np.float32)), series, 0)
    # IMOD: aligned = A (raw - centre) + d + centre, with the centre (n - 1) / 2; columns of emClarity's table.
    row = tilt_series_to_emclarity(series)[0]
    matrix, shift = row[6:10].reshape(2, 2), row[1:3]
    centre = (np.array(SHAPE[::-1]) - 1) / 2
    place = np.stack([x, y], axis=-1) - centre - shift
    source = place @ np.linalg.inv(matrix).T + centre
    inside = ((source > 12) & (source < np.array(SHAPE[::-1]) - 13)).all(axis=-1)
    expected = waves(source[..., 0], source[..., 1])
    difference = (aligned.numpy() - expected)[inside]
    assert (difference - difference.mean()).std() < 0.015 * raw.std()
    reach = ((source > -0.4) & (source < np.array(SHAPE[::-1]) - 0.6)).all(axis=-1)
    assert (sampled.numpy() != reach).mean() < 0.02
    assert (aligned.numpy()[~sampled.numpy()] == 0).all()
    assert abs(float(aligned[sampled].mean())) < 1e-4


def test_hot_pixels_do_not_spread() -> None:
    noise = np.random.default_rng(0).normal(100, 3, SHAPE).astype(np.float32)
    hot = noise.copy()
    hot[70, 80] = 40000.0
    clean, dirty = (align_view(torch.from_numpy(image), series_of(), 0)[0] for image in (noise, hot))
    assert float(dirty.abs().max()) < 8 * 3
    assert float((clean - dirty).abs().mean()) < 0.05


def test_record_of_the_aligned_stack() -> None:
    record = align_record(series_of())
    # Even sizes have IMOD's centre half a pixel before ours; the images are turned, and so is the astigmatism.
    assert (record.x_shift_angstrom[0], record.y_shift_angstrom[0]) == (0.0, -2.0)
    assert record.z_rot_deg[0] == 0
    assert record.defocus_angle_deg[0] == pytest.approx(40 + 74.3 - 180)
    assert record.y_tilt_deg[0] == 20
