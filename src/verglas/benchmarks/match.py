"""`verglas bench match`: a template search beside pytme and beside the floor, its memory, and what it finds."""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from verglas.algo.matching import search
from verglas.algo.matching.bank import Bank, build_bank
from verglas.algo.matching.peaks import allow_inside, exclude_neighbours, find_local_maxima
from verglas.algo.matching.template import Template, prepare_template, template_box, turn_templates
from verglas.algo.matching.volume import SearchVolume, prepare_volume
from verglas.algo.simulation.phantoms import make_demo_ribosome
from verglas.algo.simulation.render import render_volume
from verglas.algo.simulation.scatterers import move_scatterers
from verglas.benchmarks.harness import NO_PEER, Figure, measure_process, measure_time
from verglas.benchmarks.match_cases import find_in_crowd
from verglas.benchmarks.peers import PYTME, run_peer
from verglas.ops.angles import uniform_grid
from verglas.ops.fft import fast_size
from verglas.ops.rotation import random_rotations
from verglas.runtime import available_cores, set_threads
from verglas.steps.match_search import FLAT, search_volume

FloatArray = npt.NDArray[np.float32]

VOXEL = 20.0
RADIUS = 140.0
LOWPASS = 40.0
_TOLERANCE_VOXELS = 3.0
_WHOLE = (112, 315, 326)
_WHOLE_SECONDS = 300.0
_MEMORY = 1.0


def run(quick: bool) -> Iterator[Figure]:
    """Time it beside its peer and the floor, measure its memory, then what it finds in a crowd."""
    set_threads(available_cores())
    template = _make_template()
    yield from _race(template, quick)
    if not quick:
        yield from _search_whole(template)
    yield _measure_memory(quick)
    yield from find_in_crowd(quick)


def _make_template() -> Template:
    density = torch.from_numpy(render_volume(make_demo_ribosome(), (60, 60, 60), 6.0))
    return prepare_template(
        "ribosome",
        density,
        6.0,
        search_voxel_angstrom=VOXEL,
        radius_angstrom=RADIUS,
        lowpass_angstrom=LOWPASS,
    )


@dataclass(frozen=True, eq=False)
class _Field:
    """Ribosomes on a loose lattice in noise, and their places zyx in voxels."""

    volume: SearchVolume
    places: npt.NDArray[np.int64]


def _make_field(shape: tuple[int, int, int]) -> _Field:
    spots = np.stack(
        np.meshgrid(*[np.arange(12, n - 11, 22) for n in shape], indexing="ij"), axis=-1
    ).reshape(-1, 3)
    rng = np.random.default_rng(0)
    places = spots + rng.integers(-3, 4, spots.shape)
    turns = random_rotations(len(places), torch.Generator().manual_seed(0)).numpy()
    body = make_demo_ribosome(14.0)
    volume = np.zeros(shape, np.float32)
    for place, turn in zip(places, turns, strict=True):
        box = -render_volume(move_scatterers(body, turn), (18, 18, 18), VOXEL)
        z, y, x = place - 9
        volume[z : z + 18, y : y + 18, x : x + 18] += box
    volume += 5.0 * volume.std() * rng.standard_normal(shape, dtype=np.float32)
    prepared = prepare_volume(
        torch.from_numpy(volume), VOXEL, search_voxel_angstrom=VOXEL, lowpass_angstrom=LOWPASS
    )
    return _Field(prepared, places)


def _race(template: Template, quick: bool) -> Iterator[Figure]:
    shape, step = ((34, 56, 56), 25.0) if quick else ((56, 80, 80), 15.0)
    field = _make_field(shape)
    rotations = uniform_grid(step)
    work = float(np.prod(shape)) * len(rotations)
    found: dict[str, FloatArray] = {}

    def search_once() -> None:
        found["ours"] = _search(field.volume, _build(template, field.volume, rotations))

    seconds = measure_time(search_once, rounds=1 if quick else 3).median
    rate = work / seconds / 1e6
    recall = _count_found(found["ours"], field.places) / len(field.places)
    yield Figure(
        "match.recall", recall, f"share of {len(field.places)} ribosomes among as many highest maxima"
    )
    told = _run_peer(template, field, rotations)
    if told is None:
        yield Figure(
            "match.rate", rate, "M voxel-rotations/s", target="4 times pytme's", holds=None, peer=NO_PEER
        )
    else:
        peer_seconds, scores = told
        peer_rate, ratio = work / peer_seconds / 1e6, peer_seconds / seconds
        peer_recall = _count_found(scores, field.places) / len(field.places)
        yield Figure(
            "match.rate",
            rate,
            f"M voxel-rotations/s on {available_cores()} cores, templates turned included",
            target="4 times pytme's at equal or better recall",
            holds=ratio >= 4 and recall >= peer_recall,
            peer="pytme",
            peer_value=peer_rate,
            ratio=ratio,
        )
        yield Figure("match.peer_recall", peer_recall, "share of the ribosomes", peer="pytme")
    yield from _share_of_transforms(template, field, rotations, rate)


def _build(template: Template, volume: SearchVolume, rotations: torch.Tensor) -> Bank:
    return build_bank([template], [rotations], volume.make_filter(template_box(RADIUS / VOXEL)))


def _search(volume: SearchVolume, bank: Bank) -> FloatArray:
    with tempfile.TemporaryDirectory(prefix="verglas-match-") as scratch:
        scores = search_volume(
            volume,
            bank,
            memory_bytes=4_000_000_000,
            threads=available_cores(),
            device=torch.device("cpu"),
            folder=Path(scratch),
        )
    return np.asarray(scores.best[0])


def _count_found(scores: FloatArray, places: npt.NDArray[np.int64]) -> int:
    """Count true places that have one of the highest maxima beside them."""
    shape = (scores.shape[0], scores.shape[1], scores.shape[2])
    peaks = find_local_maxima(
        scores[None],
        np.zeros((1, *shape), np.int32),
        allow_inside(shape, 6.0),
        lowest=float(np.median(scores)),
    )
    kept = exclude_neighbours(peaks, [np.eye(3)[None]], np.full((1, 3), RADIUS / VOXEL), count=len(places))
    distance = np.linalg.norm(peaks.places[kept][None] - places[:, None], axis=2)
    return int((distance.min(axis=1) <= _TOLERANCE_VOXELS).sum())


def _run_peer(template: Template, field: _Field, rotations: torch.Tensor) -> tuple[float, FloatArray] | None:
    """Seconds and scores of pytme on the same volume, template, mask and angles."""
    size = template_box(RADIUS / VOXEL)
    filters = torch.ones(size, size, size // 2 + 1)
    turned, masks = next(turn_templates(template, torch.eye(3)[None], filters))
    with tempfile.TemporaryDirectory(prefix="verglas-pytme-") as scratch:
        folder = Path(scratch)
        np.savez(
            folder / "data.npz",
            volume=field.volume.values.numpy(),
            template=turned[0].numpy(),
            mask=masks[0].numpy(),
            rotations=rotations.numpy().astype(np.float32),
        )
        told = run_peer(
            "tme",
            PYTME,
            data=str(folder / "data.npz"),
            result=str(folder / "scores.npy"),
            workers=available_cores(),
        )
        return (told["seconds"], np.load(folder / "scores.npy")) if told else None


def _share_of_transforms(
    template: Template, field: _Field, rotations: torch.Tensor, rate: float
) -> Iterator[Figure]:
    """Time the parts of the search of one block on one core, and the transform that an orientation would take."""
    bank = _build(template, field.volume, rotations)
    values = field.volume.values
    (block,) = search.plan_blocks(tuple(values.shape), bank, 4_000_000_000)  # type: ignore[arg-type]
    patch = search.cut_block(values, block, bank.size)
    half = search.has_fast_bfloat16(torch.device("cpu"))
    whole = measure_time(lambda: search.search_block(patch, bank, floor=FLAT), rounds=1).median
    frame = tuple(fast_size(n) for n in patch.shape)
    spectrum = torch.fft.rfftn(patch, s=frame)
    one = measure_time(lambda: torch.fft.irfftn(spectrum, s=frame), rounds=5).median
    volume = bank.templates.volumes[0]
    forward = measure_time(lambda: torch.fft.rfftn(volume, s=frame), rounds=5).median
    transforms = len(bank.templates.volumes) * (one + forward)
    loadings = bank.templates.loadings.to(torch.bfloat16 if half else torch.float32)
    columns = torch.randn(loadings.shape[1], 512).to(loadings.dtype)
    product = measure_time(lambda: loadings @ columns, rounds=5).median * values.numel() / 512
    share = transforms / whole
    yield Figure(
        "match.fft_share",
        share,
        "share of the time",
        target="at least 0.7",
        holds=share >= 0.7,
        peer="matrix product",
        peer_value=product / whole,
    )
    yield Figure(
        "match.transforms_saved",
        len(rotations) / len(bank.templates.volumes),
        "orientations for each volume that is transformed",
    )
    floor = values.numel() / one * available_cores() / 1e6
    yield Figure(
        "match.rate_over_floor",
        rate,
        "M voxel-rotations/s",
        target="faster than one inverse transform an orientation",
        holds=rate > floor,
        peer="floor: the inverse transform alone, on every core",
        peer_value=floor,
        ratio=rate / floor,
    )


def _search_whole(template: Template) -> Iterator[Figure]:
    """Search a volume like a whole tomogram of a cell at 20 Å a voxel; noise takes as long as a cell does."""
    rng = np.random.default_rng(1)
    values = torch.from_numpy(rng.standard_normal(_WHOLE, dtype=np.float32))
    volume = prepare_volume(values, VOXEL, search_voxel_angstrom=VOXEL, lowpass_angstrom=LOWPASS)
    rotations = uniform_grid(14.9)
    seconds = measure_time(
        lambda: _search(volume, _build(template, volume, rotations)), rounds=1, warm_up=0
    ).median
    yield Figure(
        "match.whole_tomogram_seconds",
        seconds,
        f"s, {' x '.join(map(str, _WHOLE))} voxels, {len(rotations)} orientations",
        target=f"at most {_WHOLE_SECONDS:.0f}",
        holds=seconds <= _WHOLE_SECONDS if available_cores() <= 2 else None,
    )


_PEAK = """
import sys, resource
import numpy as np, torch
from pathlib import Path
from verglas.benchmarks import match

shape = tuple(int(n) for n in sys.argv[1].split(","))
template = match._make_template()
volume = match.prepare_volume(
    torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32)), 20.0,
    search_voxel_angstrom=20.0, lowpass_angstrom=40.0,
)
bank = match._build(template, volume, match.uniform_grid(float(sys.argv[2])))
if sys.argv[3] != "0":
    match.search_volume(
        volume, bank, memory_bytes=int(float(sys.argv[3]) * 1e9), threads=2, device=torch.device("cpu"),
        folder=Path(sys.argv[4]),
    )
"""


def _measure_memory(quick: bool) -> Figure:
    """Measure what a search takes beyond a process that prepared everything and stopped."""
    shape, step, limit = ("40,80,80", "30", 0.1) if quick else ("80,200,200", "20", _MEMORY)
    with tempfile.TemporaryDirectory(prefix="verglas-match-") as scratch:
        before, after = (
            measure_process([sys.executable, "-c", _PEAK, shape, step, str(memory), scratch]).memory_bytes
            for memory in (0, limit)
        )
    taken = (after - before) / 1e9
    return Figure(
        "match.memory",
        taken,
        "GB beyond what was there",
        target=f"at most `--memory`, {limit:g}",
        holds=taken <= limit,
    )
