"""The slab beside the field of view, and the density of a whole specimen."""

import numpy as np
import pytest

from verglas.algo.simulation.phantoms import make_blob_phantom
from verglas.algo.simulation.render import render_volume
from verglas.algo.simulation.scatterers import Scatterers
from verglas.algo.simulation.specimen import Population, Species, arrange_copies, build_specimen
from verglas.algo.simulation.surroundings import surround_specimen, visible_extent
from verglas.algo.simulation.tilt_scheme import Misalignment, make_tilt_scheme
from verglas.algo.simulation.truth import render_specimen
from verglas.errors import UserError
from verglas.model import Optics, join_particles
from verglas.ops.geometry import series_matrices

BLOB = Species("blob", make_blob_phantom(10, 40.0, seed=1))


def test_the_field_stays_and_what_is_beside_it_touches_nothing():
    populations = [Population(BLOB, 40)]
    gold = {"bead_count": 6, "bead_diameter_angstrom": 100.0}
    field = build_specimen(
        "TS", (1200.0, 1000.0, 600.0), populations, seed=2, vesicle_radii_angstrom=(200.0,), **gold
    )
    whole = surround_specimen(field, populations, (2400.0, 1500.0, 600.0), seed=2, **gold)
    np.testing.assert_array_equal(whole.particles.positions_angstrom[:40], field.particles.positions_angstrom)
    np.testing.assert_array_equal(whole.particles.angles_deg[:40], field.particles.angles_deg)
    np.testing.assert_array_equal(whole.beads_angstrom[:6], field.beads_angstrom)
    beside = np.vstack([whole.particles.positions_angstrom[40:], whole.beads_angstrom[6:, :3]])
    assert ((np.abs(beside[:, 0]) > 600) | (np.abs(beside[:, 1]) > 500)).all()
    assert (np.abs(beside) <= (1200, 750, 300)).all()
    # Twice the area beside the field, as dense: 80 molecules and 12 beads but for chance.
    assert len(whole.particles) - 40 == pytest.approx(80, abs=25)
    assert len(whole.beads_angstrom) > 8
    places = np.vstack([whole.particles.positions_angstrom, whole.beads_angstrom[:, :3]])
    radii = np.array(
        [BLOB.scatterers.radius_angstrom] * len(whole.particles) + [50.0] * len(whole.beads_angstrom)
    )
    gaps = np.linalg.norm(places[:, None] - places, axis=2) - radii[:, None] - radii
    assert gaps[np.triu_indices(len(gaps), 1)].min() >= 0
    shell = np.linalg.norm(places - whole.vesicles_angstrom[0, :3], axis=1)
    assert ((shell > 200 + 26 + radii) | (shell < 200 - 26 - radii)).all()


def test_a_slab_without_contents_has_none_beside_it():
    field = build_specimen("TS", (500.0, 500.0, 300.0), [], seed=0)
    whole = surround_specimen(field, [], (900.0, 500.0, 300.0), seed=0)
    assert len(whole.particles) == 0
    assert whole.absorbers == ()
    with pytest.raises(UserError, match="`extent_angstrom` must be at least that of the specimen"):
        surround_specimen(field, [], (400.0, 500.0, 300.0), seed=0)


@pytest.mark.parametrize("axis", [0.0, 35.0, 85.0])
def test_every_ray_leaves_the_slab_within_the_visible_extent(axis):
    errors = Misalignment(shift_angstrom=40.0, tilt_offset_deg=2.0, x_tilt_deg=1.0)
    truth = make_tilt_scheme(
        "TS", Optics(10.0), (60, 90), axis_angle_deg=axis, max_tilt_deg=60.0, misalignment=errors
    ).truth
    x, y, _ = visible_extent(truth, (100.0, 100.0), 400.0)
    reach = np.zeros(2)
    for matrix in series_matrices(truth.geometry).numpy():
        for u in (-450.0, 450.0):
            for v in (-300.0, 300.0):
                # Walk along the beam from a corner of the image to both faces of the slab.
                start = np.linalg.solve(matrix[:3, :3], np.array([u, v, 0.0]) - matrix[:3, 3])
                beam = np.linalg.solve(matrix[:3, :3], [0.0, 0.0, 1.0])
                for face in (-200.0, 200.0):
                    place = start + (face - start[2]) / beam[2] * beam
                    reach = np.maximum(reach, np.abs(place[:2]))
    assert (reach <= (x / 2 + 1e-6, y / 2 + 1e-6)).all()
    # Nor much larger than needed: corners of a turned image meet only in part.
    assert x / 2 < 1.35 * reach[0]
    assert y / 2 < 1.35 * reach[1]


def test_visible_extent_is_no_smaller_than_the_field():
    truth = make_tilt_scheme("TS", Optics(10.0), (60, 60), max_tilt_deg=0.0).truth
    assert visible_extent(truth, (5000.0, 700.0), 300.0) == (5000.0, 700.0, 300.0)


def test_a_whole_specimen_is_the_sum_of_its_copies():
    places = np.array([[40.0, -30.0, 10.0], [-60.0, 20.0, 0.0], [900.0, 0.0, 0.0]])
    specimen = arrange_copies("x", BLOB, places, np.zeros((3, 3)))
    density = render_specimen(specimen, (16, 32, 32), 8.0)
    expected = np.zeros_like(density)
    for place in places[:2]:
        body = BLOB.scatterers
        moved = Scatterers(body.positions_angstrom + place, body.weights_v_a3, body.sigmas_angstrom)
        expected += render_volume(moved, (16, 32, 32), 8.0, sampling="average")
    assert expected.max() > 0.5
    np.testing.assert_allclose(density, expected, atol=1e-4)


def test_tables_are_joined_in_their_order():
    first = build_specimen("A", (900.0, 900.0, 300.0), [Population(BLOB, 2)], seed=1).particles
    second = build_specimen("B", (900.0, 900.0, 300.0), [Population(BLOB, 3)], seed=2).particles
    joined = join_particles([first, second])
    assert list(joined.tomogram_names) == ["A"] * 2 + ["B"] * 3
    np.testing.assert_array_equal(joined.positions_angstrom[2:], second.positions_angstrom)
    assert list(joined.extra["vglVesicle"]) == [-1] * 5
