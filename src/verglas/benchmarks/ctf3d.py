"""`verglas bench ctf3d`: tomograms corrected in all three dimensions beside truth, theory and the 2-D correction."""

import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from verglas.algo.reconstruction.filtering import ViewFilter, ViewWeigher, prepare_views
from verglas.algo.reconstruction.slabs import choose_defocus_step, plan_slabs, reconstruct_slabs
from verglas.algo.reconstruction.strips import correct_in_strips, defocus_offsets, strip_step
from verglas.algo.simulation.render import render_volume
from verglas.algo.simulation.scatterers import Scatterers
from verglas.algo.simulation.specimen import Species, arrange_copies
from verglas.algo.simulation.tilt_series import simulate_tilt_series
from verglas.algo.simulation.views import Conditions
from verglas.benchmarks.cases import make_noise
from verglas.benchmarks.harness import Figure, Peak, measure_process, measure_time
from verglas.io.mrc import write_mrc
from verglas.io.relion_tilt_series import write_tilt_series
from verglas.model import ImageReference, Optics, TiltSeries
from verglas.ops.backprojection import VoxelGrid
from verglas.runtime import available_cores, set_threads
from verglas.steps.reconstruct import RECONSTRUCT_STEP, ReconstructParams
from verglas.steps.reconstruction import Part, make_grid, write_volumes
from verglas.steps.step import Context

PIXEL, THICKNESS, DEFOCUS = 5.0, 3000.0, 25000.0
"""The issue's case: 300 nm thick, 2.5 µm of defocus, 5 Å a pixel."""

SHELLS = tuple(pairwise(np.linspace(1 / 16, 1 / 10.2, 6)))
"""Where the thickness matters, 1/Å."""

FloatArray = npt.NDArray[np.float64]
Volume = npt.NDArray[np.float32]


def run(quick: bool) -> Iterator[Figure]:
    """Compare with truth, look for seams, and time it."""
    set_threads(available_cores())
    yield from _compare_with_truth(quick)
    yield _look_for_strips()
    if not quick:
        yield _look_for_slabs()
    yield from _time_command(quick)


def make_series(shape: tuple[int, int]) -> TiltSeries:
    """Plan the issue's series for views `(y, x)`."""
    tilts = np.arange(-60.0, 61.0, 3.0)
    every = np.ones(len(tilts))
    return TiltSeries(
        name="ctf3d",
        optics=Optics(PIXEL),
        image_shape=shape,
        images=tuple(ImageReference(Path("views.mrc"), i) for i in range(len(tilts))),
        nominal_tilt_deg=tilts,
        z_rot_deg=2.0 * every,
        exposure_e_per_a2=3.0 * every,
        defocus_u_angstrom=(DEFOCUS + _ASTIGMATISM) * every,
        defocus_v_angstrom=(DEFOCUS - _ASTIGMATISM) * every,
        defocus_angle_deg=35.0 * every,
    )


_ASTIGMATISM = 200.0


def _compare_with_truth(quick: bool) -> Iterator[Figure]:
    """Correlate clusters of Gaussians at the top, in the middle and at the bottom with themselves."""
    heights = {"top": 1400.0, "middle": 0.0, "bottom": -1400.0}
    series = make_series((112, 704))
    across = (-200.0, 0.0, 200.0)
    centres = {name: [(x, y, z) for x in across for y in (-100.0, 100.0)] for name, z in heights.items()}
    body = _scatter([centre for places in centres.values() for centre in places])
    blob = Scatterers(np.zeros((1, 3)), body.weights_v_a3[:1], body.sigmas_angstrom[:1])
    specimen = arrange_copies(
        "ctf3d", Species("blob", blob), body.positions_angstrom, np.zeros((len(body), 3))
    )
    conditions = Conditions(damage=False, noise=False, layer_angstrom=60.0)
    stack = simulate_tilt_series(specimen, series, conditions=conditions)
    grid = VoxelGrid((round(THICKNESS / PIXEL), 112, 160), PIXEL)
    truth = -render_volume(body, grid.shape, PIXEL)
    steps = {"2d": THICKNESS, "3d": choose_defocus_step(series, PIXEL, None)}
    if not quick:
        steps["3d_thin"] = 300.0
    volumes = {name: _reconstruct(stack, series, grid, step) for name, step in steps.items()}
    found: dict[str, dict[str, float]] = {}
    for place, height in heights.items():
        found[place] = {
            name: float(_correlate(volume, truth, centres[place], grid).mean())
            for name, volume in volumes.items()
        }
        expected = {name: _predict(height, step, series, grid) for name, step in steps.items()}
        for name, value in found[place].items():
            yield Figure(
                f"ctf3d.fsc_{place}_{name}",
                value,
                "mean correlation with truth over 16 to 10.2 Å, without noise",
                peer="theory",
                peer_value=expected[name],
            )
        if height:
            gain, theory = found[place]["3d"] - found[place]["2d"], expected["3d"] - expected["2d"]
            yield Figure(
                f"ctf3d.gain_{place}",
                gain,
                "correlation with truth, 3-D less 2-D correction",
                target="what theory gives, to a quarter of it",
                holds=abs(gain - theory) <= 0.25 * theory,
                peer="theory",
                peer_value=theory,
                ratio=gain / theory,
            )


def _scatter(centres: list[tuple[float, float, float]]) -> Scatterers:
    """Clusters of small Gaussians, 120 Å across, whose transforms are full to Nyquist."""
    count, generator = 40, np.random.default_rng(3)
    places = [np.array(centre) + generator.uniform(-35, 35, (count, 3)) for centre in centres]
    total = count * len(centres)
    return Scatterers(np.concatenate(places), np.full(total, 1000.0), np.full(total, 2.5))


def _reconstruct(stack: Volume, series: TiltSeries, grid: VoxelGrid, slab: float) -> Volume:
    options = ViewFilter(ctf="multiply", normalise=False)
    images = (torch.from_numpy(view) for view in stack)
    views, _ = prepare_views(images, series, PIXEL, normalise=False)
    volume = np.empty(grid.shape, np.float32)
    everything = [torch.arange(len(series))]
    for z, y, (block,) in reconstruct_slabs(views, series, grid, options, plan_slabs(grid, slab), everything):
        volume[z : z + block.shape[0], y : y + block.shape[1]] = block.numpy()
    return volume


def _correlate(
    volume: Volume,
    truth: Volume,
    centres: list[tuple[float, float, float]],
    grid: VoxelGrid,
) -> FloatArray:
    """Shell correlations where views measured, of boxes around the clusters."""
    size = 40
    axis = np.fft.fftfreq(size, PIXEL)
    kz, ky, kx = np.meshgrid(axis, axis, axis, indexing="ij")
    radius = np.sqrt(kz**2 + ky**2 + kx**2)
    measured = np.abs(kz) <= np.abs(kx) * np.tan(np.deg2rad(59.0))
    offset = np.arange(size) - size // 2
    distance = np.sqrt(sum(o**2 for o in np.meshgrid(offset, offset, offset, indexing="ij")))
    mask = np.clip((size / 2 - 1 - distance) / 5, 0, 1)
    sums = np.zeros((len(SHELLS), 3))
    for centre in centres:
        z, y, x = (
            round(c / PIXEL) + n // 2 - size // 2 for c, n in zip(centre[::-1], grid.shape, strict=True)
        )
        box = (slice(z, z + size), slice(y, y + size), slice(x, x + size))
        a, b = (np.fft.fftn(v[box] * mask) for v in (volume, truth))
        for i, (low, high) in enumerate(SHELLS):
            shell = measured & (radius >= low) & (radius < high)
            sums[i] += (
                (a[shell] * b[shell].conj()).real.sum(),
                (np.abs(a[shell]) ** 2).sum(),
                (np.abs(b[shell]) ** 2).sum(),
            )
    return np.asarray(sums[:, 0] / np.sqrt(sums[:, 1] * sums[:, 2]))


def _predict(height: float, step: float, series: TiltSeries, grid: VoxelGrid) -> float:
    """Return the mean correlation that theory gives: each view leaves sin χ sin(χ + δ) of the truth.

    χ is the phase at the matter's own defocus and δ = π λ s² Δz / cos(tilt), with Δz how far the slab's middle is
    off. Views and directions count alike, frequencies by their number.
    """
    surfaces = [one.surface for one in plan_slabs(grid, step)]
    middle = next(one.coefficients[0] for one in surfaces if one.low_angstrom <= height < one.high_angstrom)
    along = DEFOCUS + _ASTIGMATISM * np.cos(np.linspace(0, 2 * np.pi, 24))
    tilts = np.deg2rad(np.asarray(series.y_tilt_deg))[:, None]
    wavelength = series.optics.wavelength_angstrom
    # Depth of the matter below the tilt axis, and of what the same pixel sees in the slab's middle.
    true = along + height * np.cos(tilts)
    used = true - (height - middle) / np.cos(tilts)
    curve = []
    for shell in SHELLS:
        s = np.linspace(*shell, 60)[:, None, None]
        aberration = 0.5 * math.pi * series.optics.cs_mm * 1e7 * wavelength**3 * s**4
        constant = math.asin(series.optics.amplitude_contrast)
        left = np.prod(
            [np.sin(math.pi * wavelength * s**2 * z - aberration + constant) for z in (true, used)], axis=0
        )
        curve.append((left * s**2).mean() / np.sqrt((left**2 * s**2).mean() * (s**2).mean()))
    return float(np.mean(curve))


def _look_for_strips() -> Figure:
    """Hold the power at the strips' spacing against its neighbours', beside the same noise in finer strips."""
    series = make_series((768, 1024))
    view = len(series) - 1
    weigher = ViewWeigher(series, PIXEL, ViewFilter())
    offsets = defocus_offsets(series.image_shape, view, series, weigher.frames)
    noise = torch.randn(series.image_shape, generator=torch.Generator().manual_seed(0))
    transform = torch.fft.rfft2(noise)
    usual, fine = (
        correct_in_strips(transform, series.image_shape, offsets, view, series, PIXEL, voxel, "multiply")
        for voxel in (PIXEL, PIXEL / 3)
    )
    span = float(offsets.max() - offsets.min())
    count = math.ceil(span / strip_step(series, PIXEL))
    # Along x alone the offsets span a little less than over the whole view.
    frequency = count * float((offsets[0, 0] - offsets[0, -1]).abs()) / span
    excess = _find_excess(usual.numpy(), fine.numpy(), frequency, axis=1)
    return Figure(
        "ctf3d.strip_seams",
        excess,
        "largest deviation of the power at the strips' spacing and its first harmonics from the neighbours'",
        target="at most 0.01",
        holds=excess <= 0.01,
    )


def _look_for_slabs() -> Figure:
    """Compare neighbouring sections across the faces of slabs with those beside, in a tomogram of noise."""
    series = make_series((64, 704))
    noise = np.random.default_rng(1).standard_normal((len(series), 64, 704), dtype=np.float32)
    grid = VoxelGrid((round(THICKNESS / PIXEL), 48, 128), PIXEL)
    step = choose_defocus_step(series, PIXEL, None)
    change = (np.diff(_reconstruct(noise, series, grid, step), axis=0) ** 2).mean(axis=(1, 2))
    faces = np.array([slab.start - 1 for slab in plan_slabs(grid, step)[1:]])
    beside = np.concatenate([faces + i for i in range(-20, 21) if i])
    excess = float(change[faces].mean() / change[beside].mean() - 1)
    chance = float(change[beside].std() / change[beside].mean() / math.sqrt(len(faces)))
    return Figure(
        "ctf3d.slab_faces",
        excess,
        "by how much more neighbouring sections differ across the faces of slabs, as a part",
        peer="chance, one standard deviation",
        peer_value=chance,
    )


def _find_excess(usual: Volume, fine: Volume, frequency: float, axis: int) -> float:
    """Largest deviation of the power at `frequency` and twice and three times it, in cycles an axis.

    Both arrays are of the same noise, so their ratio is free of its chance.
    """
    others = tuple(i for i in range(usual.ndim) if i != axis)
    power = [(np.abs(np.fft.rfft(one, axis=axis)) ** 2).mean(axis=others) for one in (usual, fine)]
    ratio = power[0] / power[1]
    deviations = []
    for harmonic in (1, 2, 3):
        place = round(harmonic * frequency)
        beside = [place - 2, place - 1, place + 1, place + 2]
        deviations.append(abs(ratio[place] / ratio[[i for i in beside if i > 0]].mean() - 1))
    return float(max(deviations))


def _time_command(quick: bool) -> Iterator[Figure]:
    """Time it beside the 2-D correction and beside its Fourier transforms, and measure the command's memory."""
    shape = (252, 260) if quick else (630, 652)
    with tempfile.TemporaryDirectory(prefix="verglas-ctf3d-") as scratch:
        folder = Path(scratch)
        series = make_series(shape)
        stack = folder / "views.mrc"
        write_mrc(stack, make_noise((len(series), *shape)), voxel_size_angstrom=PIXEL, is_stack=True)
        star = write_tilt_series(folder, [series.map_images(lambda image: replace(image, path=stack))])
        flat, solid = (_write_volume(star, folder, mode) for mode in ("multiply", "3d"))
        runs = [] if quick else [_run_command(star, folder / mode, mode) for mode in ("multiply", "3d")]
    slabs = plan_slabs(
        VoxelGrid((round(THICKNESS / PIXEL), 1, 1), PIXEL), choose_defocus_step(series, PIXEL, None)
    )
    yield Figure(
        "ctf3d.seconds",
        solid,
        f"s from the stack to the written volume, {len(slabs)} slabs of {shape[1]} x {shape[0]} x "
        f"{round(THICKNESS / PIXEL)} voxels in all",
        peer="2-D correction (multiply) of the same volume",
        peer_value=flat,
        ratio=flat / solid,
    )
    floor = _time_transforms(series) * len(slabs)
    yield Figure(
        "ctf3d.transforms_share",
        floor / solid,
        "of that time is the inverse transforms of the strips",
        peer="inverse transforms, s",
        peer_value=floor,
    )
    if runs:
        views = 4 * len(series) * shape[0] * shape[1]
        slab = 4 * shape[0] * shape[1] * max(one.stop - one.start for one in slabs)
        used = runs[1].memory_bytes - runs[0].memory_bytes
        yield Figure(
            "ctf3d.peak_memory",
            used / 1e6,
            f"MB above that of the 2-D correction, which holds the stack of {views / 1e6:.0f} MB and some rows",
            target=f"at most one slab: {slab / 1e6:.0f} MB",
            holds=used <= slab,
        )


def _write_volume(star: Path, folder: Path, mode: Literal["multiply", "3d"]) -> float:
    params = ReconstructParams(tilt_series=star, ctf=mode, thickness=THICKNESS)
    (item,) = RECONSTRUCT_STEP.list_items(params)
    part: Part = item.record
    grid = make_grid(part.series, params)
    context = Context(folder, "cpu", available_cores())
    paths = [folder / "volume.mrc"]

    def write() -> None:
        write_volumes(paths, part, part.series, grid, params, context)

    return measure_time(write, rounds=1, warm_up=0).median


def _run_command(star: Path, out: Path, mode: str) -> Peak:
    words = [
        sys.executable,
        "-m",
        "verglas",
        "reconstruct",
        star,
        "--ctf",
        mode,
        "--thickness",
        THICKNESS,
        "--out",
        out,
    ]
    return measure_process([str(word) for word in words])


def _time_transforms(series: TiltSeries) -> float:
    """Seconds for the inverse transforms of all strips of one slab."""
    weigher = ViewWeigher(series, PIXEL, ViewFilter())
    count = 0
    for view in range(len(series)):
        offsets = defocus_offsets(series.image_shape, view, series, weigher.frames)
        count += math.ceil(float(offsets.max() - offsets.min()) / strip_step(series, PIXEL)) + 1
    padded = weigher.padded_shape
    transform = torch.randn(padded[0], padded[1] // 2 + 1, dtype=torch.complex64)
    return count * measure_time(lambda: torch.fft.irfft2(transform, s=padded), rounds=5).median
