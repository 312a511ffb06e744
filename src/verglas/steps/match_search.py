"""The search of one tomogram, block by block, so that what was done before it was killed is not done again."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from verglas.algo.matching.bank import Bank
from verglas.algo.matching.search import (
    Block,
    BlockScores,
    cut_block,
    has_fast_bfloat16,
    plan_blocks,
    search_block,
)
from verglas.algo.matching.volume import SearchVolume
from verglas.files import atomic_path

FLAT = 1e-3
"""Variance of the filtered volume, whose own is 1, below which a place is empty."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What a search found in a whole volume.

    Parameters
    ----------
    best
        `(t, z, y, x)` best score of each template.
    orientation
        `(t, z, y, x)` its orientation.
    deviation
        Root mean square of all scores, whatever their orientation.
    blocks
        In how many blocks the volume was searched.
    """

    best: npt.NDArray[np.float32]
    orientation: npt.NDArray[np.int32]
    deviation: float
    blocks: int


def search_volume(
    volume: SearchVolume, bank: Bank, *, memory_bytes: int, threads: int, device: torch.device, folder: Path
) -> Scores:
    """Search a volume, keeping each block's result in `folder` until the last is done.

    Parameters
    ----------
    volume
        What is searched.
    bank
        What is searched for; on the device.
    memory_bytes
        What the search may take: the volume, the bank, the scores, and a block's work.
    threads
        Threads on the CPU.
    device
        Where the search runs.
    folder
        For the blocks; its name tells searches apart that differ in anything.

    Raises
    ------
    OutOfMemoryError
        When the search does not fit into the memory.
    """
    values = volume.values
    shape = (values.shape[0], values.shape[1], values.shape[2])
    half = has_fast_bfloat16(device)
    blocks = plan_blocks(shape, bank, memory_bytes - _standing_bytes(values, bank), threads, half=half)
    best = np.empty((len(bank.rows), *shape), np.float32)
    orientation = np.empty((len(bank.rows), *shape), np.int32)
    square, count = 0.0, 0
    for number, block in enumerate(blocks):
        path = folder / f"block_{number:04d}_of_{len(blocks):04d}.npz"
        found = _load(path, block, len(bank.rows))
        if found is None:
            patch = cut_block(values, block, bank.size).to(device)
            found = search_block(patch, bank, floor=FLAT, threads=threads, half=half)
            if len(blocks) > 1:
                _save(path, found)
        place = (slice(None), *block.slices)
        best[place], orientation[place] = found.best.cpu().numpy(), found.orientation.cpu().numpy()
        square, count = square + found.square, count + found.count
    return Scores(best, orientation, float(np.sqrt(square / max(count, 1))), len(blocks))


def _standing_bytes(values: torch.Tensor, bank: Bank) -> int:
    """Memory of what there is during the whole search: the volume, the bank, and the scores."""
    held = [bank.templates.volumes, bank.templates.loadings]
    if bank.masks is not None:
        held += [bank.masks.volumes, bank.masks.loadings]
    return values.numel() * (4 + 8 * len(bank.rows)) + sum(4 * one.numel() for one in held)


def _save(path: Path, found: BlockScores) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            best=found.best.cpu().numpy(),
            orientation=found.orientation.cpu().numpy(),
            sums=np.array([found.square, found.count]),
        )


def _load(path: Path, block: Block, templates: int) -> BlockScores | None:
    if not path.exists():
        return None
    with np.load(path) as stored:
        best, orientation, (square, count) = stored["best"], stored["orientation"], stored["sums"]
    if best.shape != (templates, *block.shape):
        return None
    return BlockScores(torch.from_numpy(best), torch.from_numpy(orientation), float(square), int(count))


def remove_blocks(folders: Sequence[Path]) -> None:
    """Remove what a finished search kept."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
