"""`verglas bench backproject`: the sum of filtered views over a volume, and the agreement with astra's."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from verglas.algo.reconstruction.filtering import ViewFilter, filter_views, make_frames
from verglas.algo.reconstruction.volume import reconstruct_blocks
from verglas.benchmarks.cases import PIXEL_ANGSTROM, filter_rows, make_noise, size_of_case
from verglas.benchmarks.harness import NO_PEER, Figure, measure_time
from verglas.benchmarks.peers import ASTRA, run_peer
from verglas.model import ImageReference, Optics, TiltSeries
from verglas.ops.backprojection import VoxelGrid
from verglas.runtime import available_cores, choose_device, set_threads

VIEWS = 41
# The lowest that the issue allows, and what the tightest known code does on one thread (novaCTF).
LEAST_RATE, NOVA_RATE = 0.8, 0.35


def run(quick: bool) -> Iterator[Figure]:
    """Time it on this machine's cores, and on its GPU where there is one."""
    set_threads(available_cores())
    shape, depth = size_of_case(quick)
    grid = VoxelGrid((depth, *shape), PIXEL_ANGSTROM)
    updates = float(np.prod(grid.shape)) * VIEWS / 1e9
    views = torch.from_numpy(make_noise((VIEWS, *shape)))
    for name in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        filtered, series = views.to(choose_device(name)), _make_series(shape)
        seconds = measure_time(lambda: _sum_views(filtered, series, grid), rounds=3).median  # noqa: B023
        yield Figure(
            f"backproject.rate_{name}",
            updates / seconds,
            "G voxel-tilt updates/s",
            target=f"at least {LEAST_RATE}" if name == "cpu" else "",
            holds=updates / seconds >= LEAST_RATE if name == "cpu" else None,
            peer="novaCTF, one thread, as published for such a processor",
            peer_value=NOVA_RATE,
            ratio=updates / seconds / NOVA_RATE,
        )
    yield from _compare_with_astra(views, grid, quick)


def _make_series(shape: tuple[int, int], shift: float = 0.0) -> TiltSeries:
    return TiltSeries(
        name="noise",
        optics=Optics(PIXEL_ANGSTROM),
        image_shape=shape,
        images=tuple(ImageReference(Path("noise.mrc"), i) for i in range(VIEWS)),
        nominal_tilt_deg=np.linspace(-60.0, 60.0, VIEWS),
        x_shift_angstrom=np.full(VIEWS, shift),
        y_shift_angstrom=np.full(VIEWS, shift),
    )


def _sum_views(filtered: torch.Tensor, series: TiltSeries, grid: VoxelGrid) -> None:
    frames = make_frames(series, grid.voxel_size_angstrom)
    for _ in reconstruct_blocks(filtered, frames, grid, [torch.arange(len(series))]):
        pass


def _compare_with_astra(views: torch.Tensor, grid: VoxelGrid, quick: bool) -> Iterator[Figure]:
    """Compare sums of the same aligned, equally filtered views: their time, and the agreement inside the sample."""
    tilts = np.linspace(-60.0, 60.0, VIEWS)
    depth, _, width = grid.shape
    rows = slice(0, None, 1 if quick else 10)
    with tempfile.TemporaryDirectory(prefix="verglas-astra-") as scratch:
        sinograms, result = Path(scratch) / "sinograms.npy", Path(scratch) / "volume.npy"
        filtered = filter_rows(views.numpy()[:, rows], tilts)
        np.save(sinograms, _refine(filtered, 4))
        arguments = {"angles": tilts.tolist(), "depth": depth, "width": width, "workers": available_cores()}
        told = run_peer("astra", ASTRA, sinograms=str(sinograms), result=str(result), **arguments)
        theirs = np.load(result) if told else None
        np.save(sinograms, filtered)
        timed = run_peer("astra", ASTRA, sinograms=str(sinograms), result="", **arguments)
    # Its axes pass between the pixels, at (n - 1) / 2.
    half = PIXEL_ANGSTROM / 2
    series = _make_series((grid.shape[1], width), -half)
    ours_filtered = filter_views(iter(views), series, PIXEL_ANGSTROM, ViewFilter(normalise=False))
    shifted = VoxelGrid(grid.shape, PIXEL_ANGSTROM, (half, half, half))
    frames = make_frames(series, PIXEL_ANGSTROM)
    blocks = [b for _, (b,) in reconstruct_blocks(ours_filtered, frames, shifted, [torch.arange(VIEWS)])]
    ours = torch.cat(blocks, dim=1).numpy()[:, rows]
    seconds = measure_time(lambda: _sum_views(views, series, shifted), rounds=3).median
    scale = grid.shape[1] / filtered.shape[1]
    yield Figure(
        "backproject.seconds",
        seconds,
        "s",
        target="3 times faster than the peer",
        holds=timed["seconds"] * scale >= 3 * seconds if timed else None,
        peer=f"astra-toolbox, CPU, {available_cores()} processes" if timed else NO_PEER,
        peer_value=timed["seconds"] * scale if timed else None,
        ratio=timed["seconds"] * scale / seconds if timed else None,
    )
    correlation = None if theirs is None else _correlate_inside(ours, theirs)
    yield Figure(
        "backproject.astra_correlation",
        correlation,
        "correlation",
        target="at least 0.98 inside the sample",
        holds=None if correlation is None else correlation >= 0.98,
        peer="astra-toolbox" if told else NO_PEER,
    )


def _refine(sinograms: np.ndarray, factor: int) -> np.ndarray:
    """Sample views `factor` times finer: astra sums with a triangle as wide as its bins, which would blur them.

    Its bins then lie off the pixels by a fraction that a phase ramp makes good.
    """
    size = sinograms.shape[2]
    transform = np.fft.rfft(sinograms, 2 * size, axis=2)
    frequency = np.fft.rfftfreq(2 * size)
    transform = transform * np.exp(-2j * np.pi * frequency * (0.5 - 0.5 / factor))
    padding = np.zeros((*transform.shape[:2], size * (factor - 1)), complex)
    fine = np.fft.irfft(np.concatenate([transform, padding], axis=2), 2 * size * factor, axis=2) * factor
    return np.ascontiguousarray(fine[:, :, : size * factor], dtype=np.float32)


def _correlate_inside(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Correlation where all views see the sample, of the frequencies that both hold in every direction."""
    depth, _, width = ours.shape
    kz, kx = np.fft.fftfreq(depth)[:, None, None], np.fft.rfftfreq(width)
    inside = np.hypot(kz, kx) < 0.5
    middle = (slice(depth // 4, -depth // 4), slice(None), slice(width // 4, -width // 4))
    limited = [
        np.fft.irfftn(np.fft.rfftn(volume, axes=(0, 2)) * inside, s=(depth, width), axes=(0, 2))[middle]
        for volume in (ours, theirs)
    ]
    return float(np.corrcoef(limited[0].ravel(), limited[1].ravel())[0, 1])
