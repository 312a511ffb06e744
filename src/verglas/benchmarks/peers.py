"""Other programs, run beside ours in the same minute, each in a process of its own.

Some of them are GPL programs or need libraries of their own: nothing of them is imported here. A script gets its
arguments as JSON and answers with one line of JSON.
"""

import importlib.util
import json
import subprocess
import sys
from typing import Any


def run_peer(module: str, script: str, **arguments: Any) -> dict[str, Any] | None:
    """Run a script that needs `module` and return what it told, or None where the module is missing.

    Raises
    ------
    RuntimeError
        When the module is there and the script fails all the same.
    """
    if importlib.util.find_spec(module) is None:
        return None
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the peer {module!r} failed: {done.stderr.strip()[-500:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


ASTRA = """
import ctypes, glob, json, multiprocessing, os, sys, sysconfig, time

import numpy as np

# Its wheel wants CUDA's runtime even for work on the CPU; a pip-installed one will do.
for path in sorted(glob.glob(sysconfig.get_paths()["purelib"] + "/nvidia/*/lib/lib*.so*")):
    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
import astra

asked = json.loads(sys.argv[1])


def reconstruct(rows):
    sinograms = np.load(asked["sinograms"], mmap_mode="r")
    bins = sinograms.shape[2]
    depth, width = asked["depth"], asked["width"]
    volume = astra.create_vol_geom(depth, width)
    views = astra.create_proj_geom("parallel", width / bins, bins, np.deg2rad(asked["angles"]))
    slice_id = astra.data2d.create("-vol", volume)
    sinogram_id = astra.data2d.create("-sino", views)
    settings = astra.astra_dict("BP")
    settings["ProjectorId"] = astra.create_projector("linear", views, volume)
    settings["ReconstructionDataId"], settings["ProjectionDataId"] = slice_id, sinogram_id
    algorithm = astra.algorithm.create(settings)
    result = np.empty((depth, len(rows), width), np.float32)
    for i, row in enumerate(rows):
        astra.data2d.store(sinogram_id, np.ascontiguousarray(sinograms[:, row]))
        astra.data2d.store(slice_id, 0)
        astra.algorithm.run(algorithm)
        # Its slices run from the top down.
        result[:, i] = astra.data2d.get(slice_id)[::-1]
    return result


if __name__ == "__main__":
    workers = asked["workers"]
    rows = np.load(asked["sinograms"], mmap_mode="r").shape[1]
    parts = [list(range(i, rows, workers)) for i in range(workers)]
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        started = time.perf_counter()
        results = pool.map(reconstruct, parts)
        seconds = time.perf_counter() - started
    if asked["result"]:
        volume = np.empty((asked["depth"], rows, asked["width"]), np.float32)
        for part, result in zip(parts, results):
            volume[:, part] = result
        np.save(asked["result"], volume)
    print(json.dumps({"seconds": seconds}))
"""
"""Back-projection of sinograms `(n, y, bins)` in an `.npy` file, slices dealt out to `workers` processes."""

TORCH_RECONSTRUCT_TOMOGRAM = """
import json, sys, time

import numpy as np
import torch

asked = json.loads(sys.argv[1])
torch.set_num_threads(asked["workers"])
from torch_reconstruct_tomogram import reconstruct_tomogram
from torch_tilt_series.tilt_series import TiltSeries

count = len(asked["angles"])
series = TiltSeries(
    tilt_angles=np.array(asked["angles"]), tilt_axis_angle=np.zeros(count),
    sample_translations=np.zeros((count, 2)), image_path=asked["stack"], image_indices=np.arange(count),
    pixel_spacing=asked["pixel"], device="cpu",
)
started = time.perf_counter()
reconstruct_tomogram(series, tuple(asked["shape"]), asked["sidelength"], batch_size=4)
print(json.dumps({"seconds": time.perf_counter() - started}))
"""
"""Tomogram of one shape from a stack, in sub-volumes of one side length."""

STARFILE = """
import json, sys, time

import starfile

asked = json.loads(sys.argv[1])
started = time.perf_counter()
table = starfile.read(asked["source"])
read = time.perf_counter() - started
started = time.perf_counter()
starfile.write({"particles": table}, asked["result"], overwrite=True)
print(json.dumps({"read": read, "write": time.perf_counter() - started}))
"""
"""Reading and writing one table."""

TORCH_TILTXCORR = """
import json, sys, time

import numpy as np
import torch

asked = json.loads(sys.argv[1])
torch.set_num_threads(asked["workers"])
from torch_tiltxcorr import tiltxcorr

views = torch.from_numpy(np.load(asked["views"]))
started = time.perf_counter()
shifts = tiltxcorr(
    tilt_series=views, tilt_angles=torch.tensor(asked["angles"]), tilt_axis_angle=asked["axis"],
    pixel_spacing_angstroms=asked["pixel"], lowpass_angstroms=4 * asked["pixel"],
)
print(json.dumps({"seconds": time.perf_counter() - started}))
"""
"""Shifts of views `(n, y, x)` in an `.npy` file by correlation of stretched neighbours."""

PYTME = """
import json, sys, time, warnings

import numpy as np

warnings.simplefilter("ignore")
from tme.analyzer import MaxScoreOverRotations
from tme.matching_data import MatchingData
from tme.matching_exhaustive import MATCHING_EXHAUSTIVE_REGISTER, match_exhaustive

asked = json.loads(sys.argv[1])
if __name__ == "__main__":
    given = np.load(asked["data"])
    setup, score = MATCHING_EXHAUSTIVE_REGISTER["FLCSphericalMask"]
    data = MatchingData(
        target=given["volume"], template=given["template"], template_mask=given["mask"],
        rotations=given["rotations"],
    )
    started = time.perf_counter()
    found = match_exhaustive(
        matching_data=data, matching_score=score, matching_setup=setup, callback_class=MaxScoreOverRotations,
        job_schedule=(1, asked["workers"]), pad_target_edges=True,
    )
    seconds = time.perf_counter() - started
    np.save(asked["result"], np.asarray(found[0]))
    print(json.dumps({"seconds": seconds}))
"""
"""Best score over orientations of one template in one volume, all in one `.npz`."""

TORCH_CTF_ESTIMATION = """
import importlib.util, json, os, sys, time, types

import numpy as np
import torch

asked = json.loads(sys.argv[1])
torch.set_num_threads(asked["workers"])
# It wants a Gaussian blur of torchvision, which as a whole loads only beside the CUDA build of torch.
stub = types.ModuleType("torchvision")
stub.__path__ = [os.path.dirname(importlib.util.find_spec("torchvision").origin)]
sys.modules["torchvision"] = stub
from torch_ctf_estimation import CTFFittingParams, OpticalParams, estimate_ctf

found = []
for path, tilted in zip(asked["images"], asked["tilted"]):
    image = torch.from_numpy(np.load(path))
    started = time.perf_counter()
    try:
        _, _, result = estimate_ctf(
            image,
            OpticalParams(
                pixel_spacing_angstroms=asked["pixel"], amplitude_contrast_fraction=0.1,
                target_pixel_spacing_angstroms=2.2,
            ),
            CTFFittingParams(
                defocus_grid_resolution=(1, 2, 2) if tilted else (1, 1, 1), patch_sidelength=350,
                frequency_fit_range_angstroms=(30.0, 5.0), defocus_range_microns=(0.3, 5.0),
                defocus_model="linear" if tilted else "grid",
            ),
        )
        defocus = 1e4 * float(result.defocus_model.data.flatten()[0])
        found.append((defocus, float(result.astigmatism_angle), time.perf_counter() - started))
    except Exception:
        found.append((None, None, time.perf_counter() - started))
print(json.dumps({"found": found}))
"""
"""Defocus at the centre, angle of the astigmatism, and seconds for each `.npy`; it is told which are tilted."""

TORCH_MOTION_CORRECTION = """
import json, sys, time

import numpy as np
import torch

asked = json.loads(sys.argv[1])
torch.set_num_threads(asked["workers"])
from torch_motion_correction import (
    OptimizationConfig, PatchSamplingConfig, correct_motion, estimate_global_motion, estimate_local_motion
)

frames = torch.from_numpy(np.load(asked["frames"]))
pixel = asked["pixel"]
started = time.perf_counter()
whole = estimate_global_motion(frames, pixel)
field, _ = estimate_local_motion(
    frames, pixel, tuple(asked["grid"]), PatchSamplingConfig((asked["patch"], asked["patch"])),
    initial_deformation_field=whole, optimization=OptimizationConfig(early_stopping=True),
)
total = correct_motion(frames, field, pixel).sum(0)
seconds = time.perf_counter() - started
y, x = torch.tensor(asked["places"], dtype=torch.float32).T
found = []
with torch.no_grad():
    for t in torch.linspace(0, 1, len(frames)):
        found.append(field(torch.stack([t.expand(len(y)), y, x], dim=1)).tolist())
print(json.dumps({"seconds": seconds, "shifts": found}))
"""
"""Motion of frames `(n, y, x)` in an `.npy` file, corrected and mended: shifts yx in Å at places yx from 0 to 1."""
