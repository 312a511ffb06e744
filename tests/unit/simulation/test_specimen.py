"""Specimens: nothing overlaps, membrane proteins stand on their vesicles, the seed decides."""

import numpy as np
import pytest

from verglas.algo.simulation.orientations import pose_matrices
from verglas.algo.simulation.phantoms import make_blob_phantom
from verglas.algo.simulation.placement import place_balls
from verglas.algo.simulation.render import project_scatterers
from verglas.algo.simulation.specimen import (
    Population,
    Species,
    Specimen,
    add_absorber,
    arrange_copies,
    build_specimen,
)
from verglas.algo.simulation.supports import make_amorphous_film, make_carbon_edge, make_gold
from verglas.errors import UserError

BIG = Species("big", make_blob_phantom(30, 60.0, seed=1))
SMALL = Species("small", make_blob_phantom(10, 25.0, seed=2))
ANCHORED = Species("anchored", make_blob_phantom(10, 25.0, seed=3))


def build(seed: int = 0) -> Specimen:
    return build_specimen(
        "TS_01",
        (3000.0, 2500.0, 900.0),
        [Population(SMALL, 200), Population(BIG, 60), Population(ANCHORED, 25, in_membrane=True)],
        seed=seed,
        vesicle_radii_angstrom=[250.0, 180.0],
        bead_count=12,
        grain_angstrom=20.0,
    )


SPECIMEN = build()


def test_balls_in_a_crowd_do_not_overlap() -> None:
    radii = np.random.default_rng(0).uniform(20, 60, 900)
    places = place_balls(radii, (1500.0, 1500.0, 500.0), np.random.default_rng(1))
    gaps = np.linalg.norm(places[:, None] - places[None], axis=-1) - radii[:, None] - radii[None]
    np.fill_diagonal(gaps, np.inf)
    assert gaps.min() >= 0
    assert (np.abs(places[:, 2]) + radii).max() <= 250.0
    assert np.abs(places[:, :2]).max() <= 750.0
    # They fill the slab: no eighth of it is empty.
    assert np.histogramdd(places, bins=2)[0].min() > 60


def test_balls_keep_off_obstacles_and_shells_but_may_lie_in_the_hollow() -> None:
    obstacles = np.array([[0.0, 0, 0, 200.0]])
    shells = np.array([[500.0, 0, 0, 180.0, 220.0]])
    radii = np.full(400, 20.0)
    places = place_balls(
        radii, (1600.0, 800.0, 400.0), np.random.default_rng(2), obstacles=obstacles, shells=shells
    )
    assert np.linalg.norm(places, axis=1).min() >= 220.0
    distance = np.linalg.norm(places - [500.0, 0, 0], axis=1)
    assert not ((distance > 160) & (distance < 240)).any()
    assert (distance <= 160).any()


def test_balls_that_do_not_fit_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="thick"):
        place_balls([60.0], (500.0, 500.0, 100.0), rng)
    with pytest.raises(UserError, match="found a place"):
        place_balls(np.full(50, 50.0), (200.0, 200.0, 100.0), rng, attempts=50)
    assert place_balls([], (1.0, 1.0, 1.0), rng).shape == (0, 3)


def test_nothing_in_a_specimen_overlaps() -> None:
    table = SPECIMEN.particles
    species = {s.name: s.scatterers.radius_angstrom for s in SPECIMEN.species}
    radii = np.array([species[name] for name in table.extra["vglSpecies"]])
    places = np.vstack([table.positions_angstrom, SPECIMEN.beads_angstrom[:, :3]])
    sizes = np.concatenate([radii, SPECIMEN.beads_angstrom[:, 3]])
    gaps = np.linalg.norm(places[:, None] - places[None], axis=-1) - sizes[:, None] - sizes[None]
    np.fill_diagonal(gaps, np.inf)
    assert gaps.min() > -1e-9
    for row, vesicle in enumerate(SPECIMEN.vesicles_angstrom):
        others = np.append(table.extra["vglVesicle"].to_numpy() != row, np.full(12, True))
        depth = np.abs(np.linalg.norm(places - vesicle[:3], axis=1) - vesicle[3])
        assert (depth[others] >= sizes[others] + 18.5).all()
    assert (np.abs(places[:, 2]) + sizes).max() <= 450.0


def test_membrane_proteins_stand_on_their_vesicle_along_the_normal() -> None:
    table = SPECIMEN.particles
    rows = SPECIMEN.rows_of(ANCHORED)
    assert len(rows) == 25
    owners = SPECIMEN.vesicles_angstrom[table.extra["vglVesicle"].to_numpy()[rows]]
    out = table.positions_angstrom[rows] - owners[:, :3]
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), owners[:, 3])
    axes = pose_matrices(table.angles_deg[rows])[:, :, 2]
    np.testing.assert_allclose(axes, out / owners[:, 3:], atol=1e-9)


def test_the_table_names_every_molecule() -> None:
    names, counts = np.unique(SPECIMEN.particles.extra["vglSpecies"].astype(str), return_counts=True)
    assert dict(zip(names, counts, strict=True)) == {"anchored": 25, "big": 60, "small": 200}
    assert set(SPECIMEN.particles.tomogram_names) == {"TS_01"}
    assert (SPECIMEN.particles.extra["vglVesicle"][SPECIMEN.rows_of(BIG)] == -1).all()
    assert len(SPECIMEN.beads_angstrom) == 12


def test_the_seed_decides_everything() -> None:
    same, other = build(), build(1)
    np.testing.assert_array_equal(same.particles.positions_angstrom, SPECIMEN.particles.positions_angstrom)
    np.testing.assert_array_equal(same.particles.angles_deg, SPECIMEN.particles.angles_deg)
    np.testing.assert_array_equal(same.beads_angstrom, SPECIMEN.beads_angstrom)
    assert not np.array_equal(other.particles.positions_angstrom, SPECIMEN.particles.positions_angstrom)


def test_copies_are_arranged_as_told() -> None:
    places = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    specimen = arrange_copies("one", BIG, places, np.zeros((2, 3)), 100.0)
    np.testing.assert_array_equal(specimen.particles.positions_angstrom, places)
    assert specimen.extent_angstrom[2] == 100.0
    assert len(specimen.rows_of(BIG)) == 2


@pytest.mark.parametrize(
    ("populations", "word"),
    [
        ([Population(BIG, 1), Population(BIG, 1)], "different names"),
        ([Population(BIG, -1)], "negative"),
        ([Population(BIG, 1, in_membrane=True)], "vesicle"),
    ],
)
def test_bad_populations_are_refused(populations: list[Population], word: str) -> None:
    with pytest.raises(UserError, match=word):
        build_specimen("x", (1000.0, 1000.0, 500.0), populations, seed=0)


def test_gold_absorbs_along_its_chord() -> None:
    gold = make_gold(np.array([[0.0, 0.0, 0.0, 50.0]]), 5.0)
    length = project_scatterers(gold.scatterers, np.eye(3), (33, 33), 5.0) / gold.potential_v
    assert length[16, 16] == pytest.approx(100.0, rel=0.03)
    assert length[16, 22] == pytest.approx(2 * np.sqrt(50**2 - 30**2), rel=0.05)
    assert length[16, 28] < 1.0


def test_carbon_lies_under_the_slab_beyond_its_edge() -> None:
    extent = (1000.0, 800.0, 400.0)
    carbon = make_carbon_edge(extent, 100.0, seed=1, edge_angle_deg=90.0)
    z, y = carbon.scatterers.positions_angstrom[:, 2], carbon.scatterers.positions_angstrom[:, 1]
    assert y.min() > 100.0
    assert -370 < z.min() < z.max() < -180
    length = project_scatterers(carbon.scatterers, np.eye(3), (80, 100), 10.0) / carbon.potential_v
    assert length[60:75, 10:90].mean() == pytest.approx(150.0, rel=0.03)
    assert length[60:75, 10:90].std() > 2.0
    assert np.abs(length[:45]).max() < 1.0
    assert add_absorber(SPECIMEN, carbon).absorbers[-1] is carbon
    with pytest.raises(UserError, match="thickness"):
        make_carbon_edge(extent, 0.0, seed=1, thickness_angstrom=0.0)


def test_amorphous_film_has_the_spectral_density_it_states() -> None:
    film = make_amorphous_film((1280.0, 1280.0, 0.0), 5.0, 120.0, seed=4)
    image = project_scatterers(film, np.eye(3), (256, 256), 5.0, sampling="point")
    power = np.abs(np.fft.rfft2(image)) ** 2 * 25**2 / 1280.0**2
    k = np.hypot(np.fft.fftfreq(256, 5.0)[:, None], np.fft.rfftfreq(256, 5.0)[None])
    ring = (k > 0.005) & (k < 0.05)
    blur = np.exp(-4 * np.pi**2 * 2.5**2 * k[ring] ** 2)
    assert (power[ring] / blur).mean() == pytest.approx(120.0**2, rel=0.05)
