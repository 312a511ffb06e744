"""`pca` and `cluster` on simulated ribosomes of which half lack the small subunit."""

import numpy as np
import pytest

from verglas.benchmarks.class_cases import RADIUS_ANGSTROM, Mixture, write_mixture
from verglas.errors import UserError
from verglas.io.mrc import read_mrc, write_mrc
from verglas.io.mrc_header import read_mrc_header
from verglas.io.relion_particles import read_particles
from verglas.io.star import read_table
from verglas.steps.cluster import CLUSTER_STEP, ClusterParams
from verglas.steps.particles import PARTICLES_STEP, ParticlesParams
from verglas.steps.pca import PCA_STEP, PcaParams
from verglas.steps.step import RunOptions, run_step

QUIET = RunOptions(device="cpu", quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("classes")
    write_mixture(
        made,
        Mixture("small subunit", series=1, side=144, pixel_size_angstrom=14.0, copies=18, tilt_step_deg=6.0),
    )
    return made


def choose(folder, **more):
    given = {"lowpass": 45.0, "components": 2, "ice_thickness": 1200.0, "particle_radius": RADIUS_ANGSTROM}
    return PcaParams(
        particles=folder / "particles.star", tilt_series=folder / "tilt_series.star", **(given | more)
    )


@pytest.fixture(scope="module")
def pca(folder):
    report = run_step(PCA_STEP, choose(folder), folder / "pca", options=QUIET)
    assert not report.failed
    return report


def test_the_subunit_is_the_first_component(folder, pca):
    told = {name: value.value for name, value in pca.summary.values.items()}
    assert told["components"] >= 1
    assert 2 < told["turn"] < 6
    assert 3 < told["shift"] < 10
    table = read_table(folder / "pca/components.star", "components")
    assert float(table["vglAgreement"][0]) > 0.7
    # The small subunit lies where x is below -22 Å.
    volume = np.abs(read_mrc(folder / "pca/maps/component_1.mrc"))
    voxel = read_mrc_header(folder / "pca/maps/component_1.mrc").pixel_size_angstrom
    x = (np.arange(len(volume)) - len(volume) // 2) * voxel
    peak = np.unravel_index(volume.argmax(), volume.shape)
    assert x[peak[2]] < -22


def test_classes_are_those_that_were_mixed(folder, pca, tmp_path):
    report = run_step(
        CLUSTER_STEP,
        ClusterParams(pca=folder / "pca", classes=2, components=(1,)),
        tmp_path / "c",
        options=QUIET,
    )
    assert not report.failed
    table = read_particles(tmp_path / "c/particles.star")
    numbers = table.extra["rlnClassNumber"].to_numpy(dtype=int)
    lacks = table.extra["vglSpecies"].to_numpy() == "part"
    share = ((numbers == 1) == lacks).mean()
    assert max(share, 1 - share) > 0.9
    counts = np.bincount(numbers)[1:].tolist()
    assert report.summary.values["classes"].value == ", ".join(map(str, counts))
    assert counts == sorted(counts, reverse=True)
    whole, part = (
        read_mrc(tmp_path / f"c/maps/class_{number}.mrc")
        for number in ([1, 2] if (numbers[~lacks] == 1).mean() > 0.5 else [2, 1])
    )
    voxel = read_mrc_header(tmp_path / "c/maps/class_1.mrc").pixel_size_angstrom
    # In the middle of the small subunit.
    z, y, x = (round(at / voxel) + len(whole) // 2 for at in (-22.0, -14.0, -48.0))
    assert part[z, y, x] < 0.3 * whole[z, y, x]
    # Its particles can be taken, and averaged.
    taken = ParticlesParams(particles=(tmp_path / "c/particles.star",), class_number=2)
    run_step(PARTICLES_STEP, taken, tmp_path / "two", options=QUIET)
    assert len(read_particles(tmp_path / "two/particles.star")) == counts[1]
    again = run_step(
        CLUSTER_STEP,
        ClusterParams(pca=folder / "pca", classes=2, components=(1,)),
        tmp_path / "d",
        options=QUIET,
    )
    assert not again.failed
    for name in ("particles.star", "maps/class_1.mrc", "figures/classes.png"):
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "d" / name).read_bytes()


def test_a_mask_says_what_may_differ(folder, tmp_path):
    """Where only the large subunit may differ, the small one's absence is not seen."""
    x = (np.arange(60) - 30) * 10.0
    mask = np.broadcast_to(x > 20, (60, 60, 60)).astype(np.float32)
    write_mrc(tmp_path / "mask.mrc", mask, voxel_size_angstrom=10.0)
    report = run_step(PCA_STEP, choose(folder, mask=tmp_path / "mask.mrc"), tmp_path / "out", options=QUIET)
    volume = np.abs(read_mrc(tmp_path / "out/maps/component_1.mrc"))
    half = len(volume) // 2
    assert volume[..., : half - 2].max() < 0.1 * volume.max()
    assert report.summary.values["strongest"].value < 20


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lowpass": 20.0}, "beyond what pixels of 14 Å hold; expected at least 30.8 Å"),
        ({"mask": "nowhere.mrc"}, "nowhere.mrc"),
    ],
)
def test_what_cannot_be_done_is_refused(folder, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        run_step(PCA_STEP, choose(folder, **more), tmp_path / "out", options=QUIET)


def test_clusters_need_components(folder, pca, tmp_path):
    with pytest.raises(UserError, match="`components` holds 3; expected numbers from 1 to 2"):
        run_step(
            CLUSTER_STEP,
            ClusterParams(pca=folder / "pca", classes=2, components=(3,)),
            tmp_path / "a",
            options=QUIET,
        )
    with pytest.raises(UserError, match=r"holds no places\.npz; expected a job folder of `pca`"):
        run_step(CLUSTER_STEP, ClusterParams(pca=folder, classes=2), tmp_path / "b", options=QUIET)
