"""A made-up molecule and a tilt series, for the tests of the search."""

from pathlib import Path

import numpy as np
import torch

from verglas.algo.matching.template import prepare_template
from verglas.algo.simulation.phantoms import make_blob_phantom
from verglas.algo.simulation.render import render_volume
from verglas.algo.simulation.scatterers import move_scatterers
from verglas.model import ImageReference, Optics, TiltSeries

VOXEL = 20.0
RADIUS = 90.0


def make_series(tilts=None, **changes):
    tilts = np.arange(-60.0, 61.0, 3.0) if tilts is None else np.asarray(tilts, dtype=float)
    return TiltSeries(
        name="TS",
        optics=Optics(10.0),
        image_shape=(64, 64),
        images=tuple(ImageReference(Path("stack.mrc"), i) for i in range(len(tilts))),
        nominal_tilt_deg=tilts,
        **changes,
    )


def make_molecule():
    return make_blob_phantom(40, 80.0, seed=3, sigma_angstrom=14.0)


def make_template(**changes):
    density = torch.from_numpy(render_volume(make_molecule(), (40, 40, 40), 5.0))
    options = {
        "search_voxel_angstrom": VOXEL,
        "radius_angstrom": RADIUS,
        "lowpass_angstrom": 40.0,
        **changes,
    }
    return prepare_template("molecule", density, 5.0, **options)


def draw_molecules(shape, places_zyx, matrices, voxel=VOXEL, noise=0.0, seed=0):
    """Render turned molecules, dark, by direct sums of Gaussians; places in voxels."""
    volume = np.zeros(shape, np.float32)
    middle = np.array([n // 2 for n in shape])
    for place, matrix in zip(np.asarray(places_zyx, float), np.asarray(matrices, float), strict=True):
        body = move_scatterers(make_molecule(), matrix, ((place - middle) * voxel)[::-1])
        volume -= render_volume(body, shape, voxel)
    rng = np.random.default_rng(seed)
    return torch.from_numpy(volume + noise * volume.std() * rng.standard_normal(shape).astype(np.float32))
