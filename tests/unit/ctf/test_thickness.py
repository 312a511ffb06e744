"""Thickness from the nodes of rings: spectra summed from thin slabs with the CTF of `ops`, and a simulated image."""

import numpy as np
import pytest
import torch

from verglas.algo.ctf.micrograph import ImageSearch
from verglas.algo.ctf.quality import fit_and_judge
from verglas.algo.ctf.spectra import ViewSpectra, measure_cells
from verglas.algo.ctf.thickness import Path, measure_path
from verglas.algo.ctf.tiles import SECTORS, Band
from verglas.benchmarks.ctf_cases import make_thick_case
from verglas.model import Optics
from verglas.ops.ctf import ctf_1d
from verglas.steps.ctf_images import _label_nodes

OPTICS = Optics(1.5)
DEFOCUS = 12000.0


def sum_slabs(
    thickness: float, *, rng: np.random.Generator, samples: float = 1500.0, cs_mm: float = 2.7
) -> ViewSpectra:
    """Spectra of slabs 10 Å thick, each at its own defocus, with counting noise, in all directions the same."""
    frequency = np.arange(1 / 30, 1 / 3.5, 1 / 768)
    count = max(1, round(thickness / 10))
    defocus = DEFOCUS + thickness * ((np.arange(count) + 0.5) / count - 0.5)
    power = np.zeros_like(frequency)
    for one in defocus:
        curve = ctf_1d(
            torch.from_numpy(frequency),
            torch.tensor(one),
            voltage_kv=OPTICS.voltage_kv,
            cs_mm=cs_mm,
            amplitude_contrast=OPTICS.amplitude_contrast,
        )
        power += np.square(curve.numpy()) / count
    signal = rng.uniform(0.2, 1.0) * np.exp(-0.5 * rng.uniform(20, 60) * np.square(frequency))
    mean = (1 + signal * power) * np.exp(-4 * frequency)
    shape = (1, SECTORS, len(frequency))
    number = np.broadcast_to(samples * frequency / frequency.mean(), shape)
    # Tiles so large that they leave the rings as they are.
    return ViewSpectra(
        power=mean * rng.gamma(number) / number,
        samples=np.array(number),
        depth_angstrom=np.zeros(1),
        frequency=frequency,
        direction_deg=(np.arange(SECTORS) + 0.5) * 180 / SECTORS,
        tile_angstrom=20000.0,
        depth_spread_angstrom=0.0,
    )


def find_path(spectra: ViewSpectra, defocus: float = DEFOCUS) -> Path | None:
    return measure_path(spectra, OPTICS, np.full(SECTORS, defocus))


@pytest.mark.parametrize("thickness", [1000.0, 1500.0, 2200.0, 3000.0])
def test_thickness_of_a_sum_of_slabs(thickness: float) -> None:
    path = find_path(sum_slabs(thickness, rng=np.random.default_rng(1)))
    assert path is not None
    assert abs(path.length_angstrom - thickness) < min(3 * path.error_angstrom, 0.06 * thickness)
    # 100 nm vanish at 4.4 Å, 200 nm at 6.3 Å.
    assert path.nodes[0] ** -2 == pytest.approx(OPTICS.wavelength_angstrom * thickness, rel=0.06)
    before = path.strength[ring_at(0.5 * path.nodes[0])]
    after = path.strength[ring_at(1.15 * path.nodes[0])]
    assert before > 0 > after


def ring_at(frequency: float) -> int:
    return int((frequency - 1 / 30) * 768)


def test_thin_specimens_have_no_thickness() -> None:
    rng = np.random.default_rng(2)
    told = [find_path(sum_slabs(rng.uniform(50, 600), rng=rng)) for _ in range(40)]
    assert told == [None] * 40


def test_rings_inverted_by_a_wrong_aberration_are_no_node() -> None:
    """A Cs that is not the microscope's turns the phase by half a period at high frequency."""
    spectra = sum_slabs(200.0, rng=np.random.default_rng(3), samples=15000.0, cs_mm=0.01)
    # A fit finds a defocus at which low frequencies agree.
    assert [find_path(spectra, DEFOCUS + shift) for shift in (0.0, 60.0, 120.0)] == [None] * 3


def test_rings_that_only_fade_are_no_node() -> None:
    rng = np.random.default_rng(4)
    spectra = sum_slabs(2000.0, rng=rng)
    kept = spectra.frequency < 0.95 / np.sqrt(OPTICS.wavelength_angstrom * 2000.0)
    short = ViewSpectra(
        power=spectra.power[..., kept],
        samples=spectra.samples[..., kept],
        depth_angstrom=spectra.depth_angstrom,
        frequency=spectra.frequency[kept],
        direction_deg=spectra.direction_deg,
        tile_angstrom=spectra.tile_angstrom,
        depth_spread_angstrom=0.0,
    )
    assert find_path(short) is None


def test_a_tilted_slab_of_the_simulation() -> None:
    case = make_thick_case(2001, 1024, 2000.0, 30.0)
    cells = measure_cells(torch.from_numpy(case.image), 1.5, Band(30.0, 3.5), "image")
    found, quality, verdict = fit_and_judge(cells, case.optics, ImageSearch(), 5.0)
    thickness, error = quality.tell_thickness(found)
    assert thickness is not None
    assert error is not None
    assert quality.path is not None
    # Along the beam it is thicker, and its node nearer the centre.
    assert quality.path.length_angstrom == pytest.approx(2000 / np.cos(np.pi / 6), rel=0.06)
    assert abs(thickness - 2000) < max(3 * error, 1)
    assert error < 150
    assert abs(np.mean(found.principal[:2]) - case.defocus_angstrom) < 60
    # Rings are followed across the node.
    assert 1 / quality.resolution_angstrom > 1.2 * quality.path.nodes[0]
    assert verdict.confidence > 0.9
    nodes = _label_nodes(found, quality)
    assert nodes is not None
    assert nodes[1] == f"nodes of {thickness / 10:.0f} ± {error / 10:.0f} nm"
    assert len(nodes[0]) == np.floor(OPTICS.wavelength_angstrom * quality.path.length_angstrom / 3.5**2)
