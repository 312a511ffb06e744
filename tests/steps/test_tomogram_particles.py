"""Particles cut from tomograms instead of tilt images, by the commands."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from verglas.errors import UserError
from verglas.io.mrc import read_mrc
from verglas.io.relion_particles import read_particles, write_particles
from verglas.model import Tomogram
from verglas.ops.fft import crop_centred, pad_centred
from verglas.ops.fsc import fourier_shell_correlation
from verglas.ops.masks import soft_sphere_mask
from verglas.steps.average import AVERAGE_STEP, AverageParams
from verglas.steps.reconstruct import RECONSTRUCT_STEP, ReconstructParams
from verglas.steps.step import RunOptions, run_step
from verglas.steps.tomogram_particles import find_tomograms

QUIET = RunOptions(device="cpu", quiet=True)
BOX = 32


def run_average(ribosomes, folder, **changes):
    params = AverageParams(
        **{
            "particles": ribosomes.particles,
            "tilt_series": ribosomes.series,
            "particle_radius": ribosomes.radius,
            "box": BOX,
            **changes,
        }
    )
    return run_step(AVERAGE_STEP, params, folder, options=QUIET)


def correlate(folder, ribosomes):
    truth = torch.from_numpy(read_mrc(ribosomes.reference))
    fit = crop_centred if truth.shape[-1] >= BOX else pad_centred
    volume = torch.from_numpy(read_mrc(folder / "maps/average.mrc"))
    mask = soft_sphere_mask((BOX,) * 3, ribosomes.radius / ribosomes.pixel, 3)
    return fourier_shell_correlation(volume, fit(truth, (BOX,) * 3), ribosomes.pixel, mask)


def test_boxes_give_the_molecule_and_views_give_it_no_worse(ribosomes, tmp_path):
    for name, changes in (("views", {}), ("boxes", {"tomograms": ribosomes.tomograms})):
        assert not run_average(ribosomes, tmp_path / name, **changes).failed
    frequency, views = correlate(tmp_path / "views", ribosomes)
    _, boxes = correlate(tmp_path / "boxes", ribosomes)
    band = (frequency > 1 / 200) & (frequency < 1 / 45)
    assert float(boxes[band].min()) > 0.8
    assert float(views[band].mean()) > float(boxes[band].mean()) - 0.01


def test_tomograms_that_do_not_fit_are_refused(ribosomes, tmp_path):
    plain = ReconstructParams(tilt_series=ribosomes.series, pixel_size=28.0)
    assert not run_step(RECONSTRUCT_STEP, plain, tmp_path / "plain", options=QUIET).failed
    coarse = tmp_path / "plain/tomograms.star"
    for number, (changes, words) in enumerate(
        (
            ({"tomograms": coarse}, "made with `ctf` none; expected 3d or multiply"),
            ({"tomograms": coarse, "ctf": False, "pixel_size": 30.0}, "voxels of 28 Å; expected 30 Å"),
            ({"tomograms": ribosomes.tomograms, "ctf": False}, "made with `ctf` 3d; expected none"),
        )
    ):
        report = run_average(ribosomes, tmp_path / f"bad{number}", **changes)
        assert words in report.failed["TS_01"]
    table = read_particles(ribosomes.particles)
    write_particles(tmp_path / "p.star", replace(table, tomogram_names=np.full(len(table), "TS_09")))
    with pytest.raises(UserError, match="'TS_09' have no tilt series"):
        run_average(
            ribosomes, tmp_path / "other", particles=tmp_path / "p.star", tomograms=ribosomes.tomograms
        )


def test_of_several_regions_the_one_with_the_most_around_is_taken(ribosomes):
    table = ribosomes.truth.take([0, 0, 0, 0])
    table = replace(
        table, positions_angstrom=np.array([[0, 0, 0], [180.0, 0, 0], [60.0, 0, 0], [0, 0, 900.0]])
    )
    regions = [
        Tomogram(str(table.tomogram_names[0]), None, (20, 20, 20), 14.0, (x, 0.0, 0.0)) for x in (0.0, 150.0)
    ]
    assert find_tomograms(table, regions).tolist() == [0, 1, 0, -1]
    others = [replace(one, name="another") for one in regions]
    assert find_tomograms(table, others).tolist() == [-1] * 4
