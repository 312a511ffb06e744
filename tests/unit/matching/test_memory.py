"""A search takes no more memory than it was given, as the kernel counts it."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.matching.cases import VOXEL, make_template
from verglas.algo.matching.bank import build_bank
from verglas.algo.matching.search import block_bytes
from verglas.algo.matching.template import template_box
from verglas.algo.matching.volume import prepare_volume
from verglas.errors import OutOfMemoryError
from verglas.ops.rotation import random_rotations
from verglas.steps.match_search import search_volume

STATUS, REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def read_status(name):
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(name + ":")]
    return 1024 * int(line.split()[1])


def prepare(shape):
    """A volume of noise of that shape, and the bank of templates to look for in it."""
    values = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    volume = prepare_volume(values, VOXEL, search_voxel_angstrom=VOXEL, lowpass_angstrom=40.0)
    template = make_template()
    rotations = random_rotations(150, torch.Generator().manual_seed(0))
    return volume, build_bank([template], [rotations], volume.make_filter(template_box(template.radius)))


def measure_growth(folder):
    """By how many bytes a search may grow, and by how many this process grew, with the search's number of blocks."""
    options = {"threads": 2, "device": torch.device("cpu")}
    # What kernels take to compile is not the search's.
    search_volume(*prepare((20, 32, 36)), memory_bytes=1 << 30, folder=folder / "small", **options)
    shape = (40, 64, 72)
    volume, bank = prepare(shape)
    limit = int(0.3 * block_bytes(shape, bank, 2, half=False)) + 20 * volume.values.numel()
    before = read_status("VmRSS")
    REFS.write_text("5")
    found = search_volume(volume, bank, memory_bytes=limit, folder=folder / "large", **options)
    grown = read_status("VmHWM") - before
    with pytest.raises(OutOfMemoryError, match="give more memory"):
        search_volume(volume, bank, memory_bytes=1 << 20, folder=folder / "refused", **options)
    return limit, grown, found.blocks


def test_a_search_keeps_to_its_memory(tmp_path):
    try:
        REFS.write_text("5")
    except OSError:
        pytest.skip("the kernel does not let a process reset the peak of its memory")
    # In a process of its own: what other tests left in malloc's hands comes and goes.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        limit, grown, blocks = pool.submit(measure_growth, tmp_path).result()
    assert blocks > 2
    # What malloc keeps of earlier work counts as memory that was there; a little more is Python's.
    assert grown < limit + (8 << 20)
