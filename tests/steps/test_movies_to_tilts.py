"""Movies of tilt images and their mdoc, by `motion`, `ctf`, `select` and `stack` on the command line, to a series."""

import math
from pathlib import Path

import numpy as np
import pytest

from verglas.cli import main
from verglas.io.imod import read_tlt
from verglas.io.mrc import read_mrc, write_mrc
from verglas.io.relion_tilt_series import read_tilt_series
from verglas.io.star import read_star

SIZE, PIXEL, FRAMES = 320, 2.0, 4
TILTS = (0.0, 3.0, -3.0)
DEFOCUS = (12000.0, 13500.0, 10500.0)


def make_movie(defocus: float, seed: int) -> np.ndarray:
    """White noise seen at a defocus, by the formula itself, that drifts and is counted."""
    rng = np.random.default_rng(seed)
    ky, kx = np.fft.fftfreq(SIZE, PIXEL)[:, None], np.fft.rfftfreq(SIZE, PIXEL)[None]
    square, wavelength = kx**2 + ky**2, 0.019687
    chi = math.pi * wavelength * defocus * square - 0.5 * math.pi * 2.7e7 * wavelength**3 * square**2
    seen = np.fft.rfft2(rng.normal(size=(SIZE, SIZE))) * np.sin(chi + math.asin(0.1)) * np.exp(-10 * square)
    frames = np.empty((FRAMES, SIZE, SIZE), np.uint16)
    for number in range(FRAMES):
        x, y = 2.0 * number * PIXEL, -1.0 * number * PIXEL
        image = np.fft.irfft2(seen * np.exp(-2j * np.pi * (kx * x + ky * y)), s=(SIZE, SIZE))
        frames[number] = rng.poisson(np.maximum(40 * (1 - 0.3 * image / image.std()), 1))
    return frames


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with movies and an mdoc, and the jobs of all four commands."""
    folder = tmp_path_factory.mktemp("movies_to_tilts")
    lines = [
        f"PixelSpacing = {PIXEL}",
        "Voltage = 300",
        "",
        "[T =     Tilt axis angle = 85.0, binning = 1]",
        "",
    ]
    (folder / "frames").mkdir()
    for number, (tilt, defocus) in enumerate(zip(TILTS, DEFOCUS, strict=True)):
        name = f"TS_01_{number:03d}_{tilt:.1f}"
        write_mrc(
            folder / f"frames/{name}.mrc",
            make_movie(defocus, number),
            voxel_size_angstrom=PIXEL,
            is_stack=True,
        )
        lines += [f"[ZValue = {number}]", f"TiltAngle = {tilt}", "ExposureDose = 3.0"]
        lines += [rf"SubFramePath = X:\frames\{name}.mrc", f"DateTime = 06-Jun-23  23:{number:02d}:00", ""]
    mdoc = folder / "TS_01.mdoc"
    mdoc.write_text("\r\n".join(lines))
    for command in (
        f"motion {mdoc} --frames {folder}/frames --grid 1x1x4 --odd-even --out {folder}/motion",
        f"ctf {folder}/motion/micrographs.star --grid 1x1x1 --tile 320 --out {folder}/ctf",
        f"select {folder}/ctf/micrographs_ctf.star --names TS_01_002* --action drop --out {folder}/select",
        f"stack {mdoc} --images {folder}/motion/averages --odd-even --defocus {folder}/ctf/micrographs_ctf.star "
        f"--selection {folder}/select/selection.star --out {folder}/stack",
    ):
        assert main([*command.split(), "--quiet"]) == 0
    return folder


def test_stack_and_angles_are_sorted(project: Path) -> None:
    np.testing.assert_allclose(read_tlt(project / "stack/stacks/TS_01.rawtlt"), sorted(TILTS))
    stack = read_mrc(project / "stack/stacks/TS_01.st")
    for section, name in enumerate(("TS_01_002_-3.0", "TS_01_000_0.0", "TS_01_001_3.0")):
        np.testing.assert_array_equal(stack[section], read_mrc(project / f"motion/averages/{name}.mrc")[0])


def test_odd_and_even_sums_add_up(project: Path) -> None:
    whole, odd, even = (read_mrc(project / f"stack/stacks/TS_01{word}.st") for word in ("", "_odd", "_even"))
    np.testing.assert_allclose(odd + even, whole, atol=1e-3 * whole.std())
    table = read_star(project / "stack/tilt_series/TS_01.star")["TS_01"]
    for word in ("Odd", "Even"):
        first = table[f"rlnMicrographName{word}"][0]  # type: ignore[index]
        assert first.startswith("000001@")
        assert first.endswith(f"TS_01_{word.lower()}.st")


def test_defocus_goes_into_the_series(project: Path) -> None:
    series = read_tilt_series(project / "stack/tilt_series.star")["TS_01"]
    expected = [DEFOCUS[2], DEFOCUS[0], DEFOCUS[1]]
    np.testing.assert_allclose(series.mean_defocus_angstrom, expected, atol=150)


def test_views_that_were_dropped_are_not_selected(project: Path) -> None:
    series = read_tilt_series(project / "stack/tilt_series.star")["TS_01"]
    assert series.selected.tolist() == [False, True, True]
