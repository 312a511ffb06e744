"""Predicted images beside those that RELION subtracts, and beside transfer functions written out."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from verglas.algo.subtraction.forward import describe_optics, describe_views, make_reference
from verglas.benchmarks.subtract_cases import make_case, read_subtracted
from verglas.io.image_particles import read_image_particles
from verglas.io.mrc import read_mrc
from verglas.io.star import read_star, write_star
from verglas.model import ImageParticles
from verglas.ops.kernels.parted_slices import predict

SIZE = 48


def predict_removed(particles: ImageParticles, folder: Path) -> np.ndarray:
    volume, remove = (torch.from_numpy(read_mrc(folder / f"{name}.mrc")) for name in ("map", "remove"))
    reference = make_reference({0: volume}, remove)
    tables = describe_optics(particles, SIZE, torch.device("cpu"))
    views = describe_views(particles, reference, tables, SIZE)
    nothing = torch.zeros(len(particles), SIZE, SIZE // 2 + 1, dtype=torch.complex64)
    removed, _, _ = predict(reference.parts, reference.reach, views, nothing)
    return torch.fft.irfft2(removed, s=(SIZE, SIZE)).numpy()


@pytest.mark.relion
def test_aberrations_and_magnification_are_relions(relion: Callable[..., str], tmp_path: Path) -> None:
    if make_case(tmp_path, 16, SIZE) is None:
        pytest.skip("RELION is not installed")
    blocks = read_star(tmp_path / "particles.star")
    optics = blocks["optics"].copy()
    # Beam tilt and odd terms together: RELION takes the two terms of a tilt from the tilt alone.
    optics["rlnBeamTiltX"], optics["rlnBeamTiltY"] = 2000.0, -1000.0
    optics["rlnOddZernike"] = "[60,-40,50000,30000,-30000,7000]"
    optics["rlnEvenZernike"] = "[0.2,50,-30,40,200000,100000,-90000,150000,120000]"
    for label, value in zip(("00", "01", "10", "11"), (1.08, 0.03, 0.01, 0.95), strict=True):
        optics[f"rlnMagMat{label}"] = value
    write_star(tmp_path / "aberrated.star", {**blocks, "optics": optics})
    (tmp_path / "refine").mkdir()
    options = (
        "--K 1 --iter 1 --skip_align --ctf --particle_diameter 300 --pad 2 --dont_combine_weights_via_disc"
    )
    paths = ("--i", "aberrated.star", "--ref", "map.mrc", "--o", "refine/run")
    relion("relion_refine", *paths, *options.split())
    shutil.copyfile(tmp_path / "map.mrc", tmp_path / "refine/run_it001_class001.mrc")
    given = ("--i", "refine/run_it001_optimiser.star", "--mask", "stays.mrc", "--o", "relion/")
    relion("relion_particle_subtract", *given)
    images = read_mrc(tmp_path / "particles.mrcs")
    expected = images - read_subtracted(tmp_path / "relion/particles_subtracted.star", tmp_path)
    particles = read_image_particles(tmp_path / "aberrated.star").particles
    found = predict_removed(particles, tmp_path)
    assert ((found - expected) ** 2).sum() < 1e-3 * (expected**2).sum()
    # Each of them matters to this figure.
    for change in (
        {"odd": ()},
        {"even": ()},
        {"beam_tilt_mrad": (0.0, 0.0)},
        {"magnification": ((1, 0), (0, 1))},
    ):
        one = dataclasses.replace(particles.aberrations[0], **change)
        other = predict_removed(dataclasses.replace(particles, aberrations=(one,)), tmp_path)
        assert ((other - expected) ** 2).sum() > 3e-3 * (expected**2).sum()


def test_the_detector_weakens_what_its_curve_says(tmp_path: Path) -> None:
    if make_case(tmp_path, 3, SIZE) is None:
        pytest.skip("RELION is not installed")
    blocks = read_star(tmp_path / "particles.star")
    optics = blocks["optics"].copy()
    pixel = float(optics["rlnImagePixelSize"][0])
    curve = {"rlnResolutionInversePixel": [0.0, 0.5], "rlnMtfValue": [1.0, 0.0]}
    write_star(tmp_path / "mtf.star", {"": pd.DataFrame(curve)})
    optics["rlnMtfFileName"], optics["rlnMicrographOriginalPixelSize"] = "mtf.star", pixel / 1.5
    write_star(tmp_path / "detector.star", {**blocks, "optics": optics})
    weak, full = (
        np.fft.rfft2(predict_removed(read_image_particles(tmp_path / name).particles, tmp_path))
        for name in ("detector.star", "particles.star")
    )
    # At frequency k of the images the detector was at k / 1.5 of its own: 1 - 2 k / 1.5.
    for k in (4, 12):
        np.testing.assert_allclose(weak[:, 0, k], full[:, 0, k] * (1 - 2 * k / SIZE / 1.5), rtol=2e-3)
