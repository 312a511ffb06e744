"""Membranes from averages to particles to micrographs, on a vesicle whose truth is a circle."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from verglas.errors import UserError
from verglas.io.cryosparc import read_cs, write_cs
from verglas.io.membranes import read_membranes, write_membranes
from verglas.io.mrc import read_mrc, write_mrc
from verglas.io.mrc_header import read_mrc_header
from verglas.io.star import read_star, write_star
from verglas.model.membrane import MembraneRecord
from verglas.steps.membranes_analyze import MEMBRANES_ANALYZE_STEP, MembranesAnalyzeParams
from verglas.steps.membranes_micrographs import MEMBRANES_MICROGRAPHS_STEP, MembranesMicrographsParams
from verglas.steps.membranes_subtract import MEMBRANES_SUBTRACT_STEP, MembranesSubtractParams
from verglas.steps.step import RunOptions, run_step

QUIET = RunOptions(device="cpu", quiet=True)
PIXEL, BOX, RADIUS, SIZE = 3.0, 96, 150.0, 448
CENTRE = (230.0, 215.0)
GAP, SIGMA = 12.0, 2.4


def bilayer(distance: np.ndarray) -> np.ndarray:
    return sum(np.exp(-0.5 * ((distance + side * GAP / 2) / SIGMA) ** 2) for side in (-1, 1))


@dataclass(frozen=True)
class Vesicle:
    folder: Path
    micrograph: np.ndarray
    membrane: np.ndarray
    protein: np.ndarray
    truth: np.ndarray


@pytest.fixture(scope="module")
def vesicle(tmp_path_factory) -> Vesicle:
    """A micrograph of one vesicle, dense is dark, with boxes of inverted contrast along it, and a class average."""
    folder = tmp_path_factory.mktemp("membranes")
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:SIZE, :SIZE].astype(float)
    membrane = bilayer(np.hypot(y - CENTRE[0], x - CENTRE[1]) - RADIUS)
    protein = 1.2 * np.exp(-0.5 * (((y - CENTRE[0]) / 8) ** 2 + ((x - CENTRE[1] - RADIUS - 8) / 8) ** 2))
    micrograph = 50 - 3 * (membrane + protein + rng.normal(0, 1.2, membrane.shape)) + 0.01 * x
    (folder / "S1/motioncorrected").mkdir(parents=True)
    write_mrc(folder / "S1/motioncorrected/mic.mrc", micrograph.astype(np.float32), voxel_size_angstrom=PIXEL)
    angles = np.arange(0, 360, 12.0)
    turns = np.deg2rad(angles)
    places = np.rint(
        np.stack([CENTRE[1] + RADIUS * np.cos(turns), CENTRE[0] + RADIUS * np.sin(turns)], axis=1)
    )
    images = []
    for column, row in places.astype(int):
        box = np.pad(micrograph, BOX, mode="edge")[row + BOX // 2 : row + 3 * BOX // 2, column + BOX // 2 :][
            :, :BOX
        ]
        images.append(-(box - box.mean()) / box.std())
    write_mrc(
        folder / "particles.mrcs", np.array(images, np.float32), voxel_size_angstrom=PIXEL, is_stack=True
    )
    # In the class the membrane runs along y and its inside is to the left: the outward direction is x.
    b = np.arange(BOX) - BOX // 2
    average = bilayer(np.hypot(b[:, None], b[None, :] + RADIUS) - RADIUS) + rng.normal(0, 0.1, (BOX, BOX))
    write_mrc(
        folder / "averages.mrcs", average[None].astype(np.float32), voxel_size_angstrom=PIXEL, is_stack=True
    )
    exact = np.stack([CENTRE[1] + RADIUS * np.cos(turns), CENTRE[0] + RADIUS * np.sin(turns)], axis=1)
    optics = {
        "rlnOpticsGroup": [1],
        "rlnImagePixelSize": [PIXEL],
        "rlnVoltage": [300.0],
        "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.1],
        "rlnImageSize": [BOX],
    }
    rows = {
        "rlnImageName": [f"{n + 1:06d}@{folder}/particles.mrcs" for n in range(len(angles))],
        "rlnOpticsGroup": 1,
        "rlnMicrographName": str(folder / "S1/motioncorrected/mic.mrc"),
        "rlnCoordinateX": places[:, 0],
        "rlnCoordinateY": places[:, 1],
        # The reference lies in the image turned by -psi.
        "rlnAnglePsi": -angles,
        "rlnOriginXAngst": (places[:, 0] - exact[:, 0]) * PIXEL,
        "rlnOriginYAngst": (places[:, 1] - exact[:, 1]) * PIXEL,
        "rlnClassNumber": 1,
    }
    write_star(folder / "particles.star", {"optics": pd.DataFrame(optics), "particles": pd.DataFrame(rows)})
    return Vesicle(folder, micrograph, -3 * membrane, -3 * protein, y)


@pytest.fixture(scope="module")
def analyzed(vesicle: Vesicle) -> Path:
    out = vesicle.folder / "analyzed"
    params = MembranesAnalyzeParams(averages=vesicle.folder / "averages.mrcs", kappa_templates=5)
    assert not run_step(MEMBRANES_ANALYZE_STEP, params, out, options=QUIET).failed
    return out


@pytest.fixture(scope="module")
def subtracted(vesicle: Vesicle, analyzed: Path) -> Path:
    out = vesicle.folder / "subtracted"
    params = MembranesSubtractParams(
        particles=vesicle.folder / "particles.star", membranes=analyzed / "membranes.star"
    )
    report = run_step(MEMBRANES_SUBTRACT_STEP, params, out, options=QUIET)
    assert not report.failed
    assert report.summary is not None
    assert float(report.summary.values["left"].value) < 10
    return out


def test_the_average_is_measured(analyzed: Path) -> None:
    (one,) = read_membranes(analyzed / "membranes.star")
    assert one.distance == pytest.approx(GAP, abs=0.2)
    assert one.sigma1 == pytest.approx(SIGMA, rel=0.1)
    assert abs(one.kappa) == pytest.approx(1 / RADIUS, abs=3e-4)
    assert min(one.theta_deg, 180 - one.theta_deg) < 0.3
    assert one.centre_yx[1] == pytest.approx(BOX // 2, abs=0.2)
    assert read_mrc(analyzed / "membranes.mrcs").shape == (1, BOX, BOX)
    assert read_mrc(analyzed / "masks.mrcs").max() == pytest.approx(1, abs=1e-5)
    templates = read_mrc(analyzed / "kappa_templates.mrcs")
    assert templates.shape == (5, BOX, BOX)
    # The middle one is straight: all its rows within the window are alike.
    middle = templates[2, BOX // 2 - 10 : BOX // 2 + 10]
    assert np.ptp(middle, axis=0).max() < 0.01 * np.ptp(middle)


def test_particles_lose_their_membrane_and_keep_what_is_on_it(vesicle: Vesicle, subtracted: Path) -> None:
    rows = read_star(subtracted / "particles.star")["particles"]
    assert rows["rlnImageOriginalName"].iloc[0].startswith("000001@")
    before, after = (
        read_mrc(vesicle.folder / "particles.mrcs"),
        read_mrc(subtracted / "stacks/part_00001.mrcs"),
    )
    assert read_mrc_header(subtracted / "stacks/part_00001.mrcs").pixel_size_angstrom == pytest.approx(PIXEL)
    taken = (before - after).astype(float)
    places = rows[["rlnCoordinateX", "rlnCoordinateY"]].to_numpy().astype(int)
    for number in (3, 14, 25):
        column, row = places[number]
        low = (row - BOX // 2, column - BOX // 2)
        box = vesicle.membrane[max(low[0], 0) : low[0] + BOX, max(low[1], 0) : low[1] + BOX]
        own = taken[number][max(-low[0], 0) :, max(-low[1], 0) :][: box.shape[0], : box.shape[1]]
        scale = (own * box).sum() / (box**2).sum()
        assert scale < 0
        assert np.sqrt(((own - scale * box) ** 2).sum() / (own**2).sum()) < 0.12


def test_absolute_values_agree_with_squares(vesicle: Vesicle, analyzed: Path, subtracted: Path) -> None:
    params = MembranesSubtractParams(
        particles=vesicle.folder / "particles.star",
        membranes=analyzed / "membranes.star",
        scale="absolute",
        float16=True,
    )
    out = vesicle.folder / "absolute"
    assert not run_step(MEMBRANES_SUBTRACT_STEP, params, out, options=QUIET).failed
    one, other = (
        read_star(folder / "particles.star")["particles"]["vglMembraneScale"].to_numpy()
        for folder in (subtracted, out)
    )
    assert (one != other).any()
    np.testing.assert_allclose(one, other, atol=0.12)


def test_micrographs_at_their_own_grey(vesicle: Vesicle, subtracted: Path) -> None:
    out = vesicle.folder / "micrographs"
    params = MembranesMicrographsParams(particles=subtracted / "particles.star")
    report = run_step(MEMBRANES_MICROGRAPHS_STEP, params, out, options=QUIET)
    assert not report.failed
    result = read_mrc(out / "subtracted/mic_subtracted.mrc")[0].astype(float)
    taken = vesicle.micrograph - result
    slope = (taken * vesicle.membrane).sum() / (vesicle.membrane**2).sum()
    assert slope == pytest.approx(1, abs=0.03)
    left = vesicle.membrane - taken
    assert np.sqrt((left**2).sum() / (vesicle.membrane**2).sum()) < 0.15
    kept = 1 + (left * vesicle.protein).sum() / (vesicle.protein**2).sum()
    assert kept > 0.9
    far = np.abs(vesicle.membrane) < 1e-9
    assert np.abs(taken[far]).max() < 0.5
    untouched = result.astype(np.float32) == vesicle.micrograph.astype(np.float32)
    assert untouched.mean() > 0.3
    table = read_star(out / "micrographs.star")["micrographs"]
    assert table["rlnMicrographName"].iloc[0].endswith("subtracted/mic_subtracted.mrc")
    moved = read_star(out / "particles.star")["particles"]["rlnMicrographName"]
    assert moved.str.endswith("subtracted/mic_subtracted.mrc").all()


def test_cryosparc_tables(vesicle: Vesicle, analyzed: Path, subtracted: Path) -> None:
    rows = read_star(vesicle.folder / "particles.star")["particles"]
    layout = [
        ("blob/path", "S200"),
        ("blob/idx", "u4"),
        ("blob/psize_A", "f4"),
        ("blob/shape", "u4", (2,)),
        ("alignments2D/pose", "f4"),
        ("alignments2D/shift", "f4", (2,)),
        ("alignments2D/psize_A", "f4"),
        ("alignments2D/class", "u4"),
    ]
    records = np.zeros(len(rows), layout)
    records["blob/path"] = str(vesicle.folder / "particles.mrcs").encode()
    records["blob/idx"] = np.arange(len(rows))
    records["blob/psize_A"] = records["alignments2D/psize_A"] = PIXEL
    records["blob/shape"] = BOX
    records["alignments2D/pose"] = np.deg2rad(rows["rlnAnglePsi"])
    records["alignments2D/shift"] = rows[["rlnOriginXAngst", "rlnOriginYAngst"]] / PIXEL
    write_cs(vesicle.folder / "particles.cs", records)
    params = MembranesSubtractParams(
        particles=vesicle.folder / "particles.cs", membranes=analyzed / "membranes.star"
    )
    out = vesicle.folder / "from_cs"
    assert not run_step(MEMBRANES_SUBTRACT_STEP, params, out, options=QUIET).failed
    one, other = (read_mrc(folder / "stacks/part_00001.mrcs") for folder in (subtracted, out))
    np.testing.assert_allclose(one, other, atol=0.02)
    assert read_cs(out / "particles.cs")["blob/path"][0].endswith(b"part_00001.mrcs")


def test_a_table_of_membranes_survives(tmp_path: Path) -> None:
    control = ((1.0, 2.0), (3.0, 4.5), (5.0, 6.0), (7.0, 8.0))
    records = [
        MembraneRecord(1, "a.mrcs", (40.5, 50.25), 12.5, -0.002, 12.0, 3.0, 3.5, 0.9, 2.5, 128),
        MembraneRecord(3, "a.mrcs", (44.0, 51.0), 112.5, 0.001, 11.0, 3.1, 3.2, 0.8, 2.5, 128, control),
    ]
    write_membranes(tmp_path / "membranes.star", records)
    assert read_membranes(tmp_path / "membranes.star") == records


def test_what_cannot_be_used_is_said(vesicle: Vesicle, analyzed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="defocus"):
        run_step(
            MEMBRANES_SUBTRACT_STEP,
            MembranesSubtractParams(
                particles=vesicle.folder / "particles.star", membranes=analyzed / "membranes.star", ctf=True
            ),
            tmp_path / "ctf",
            options=QUIET,
        )
    with pytest.raises(UserError, match="expected `originals`"):
        run_step(
            MEMBRANES_MICROGRAPHS_STEP,
            MembranesMicrographsParams(particles=vesicle.folder / "particles.star"),
            tmp_path / "micrographs",
            options=QUIET,
        )
    with pytest.raises(UserError, match="holds 1 averages"):
        run_step(
            MEMBRANES_ANALYZE_STEP,
            MembranesAnalyzeParams(averages=vesicle.folder / "averages.mrcs", classes=(2,)),
            tmp_path / "analyze",
            options=QUIET,
        )
