"""`verglas bench fft-crop`: binning of a camera image by cropping its transform."""

from collections.abc import Iterator

import torch

from verglas.benchmarks.harness import Figure, measure_time
from verglas.ops.fft import rescale_images
from verglas.runtime import available_cores, choose_device, set_threads


def run(quick: bool) -> Iterator[Figure]:
    """Crop a square image to an eighth, beside the one full transform that no way around saves."""
    set_threads(available_cores())
    size = 1024 if quick else 4096
    for name in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        image = torch.randn(size, size, device=choose_device(name))
        ours = measure_time(lambda: rescale_images(image, (size // 8, size // 8))).median  # noqa: B023
        floor = measure_time(lambda: torch.fft.rfft2(image)).median  # noqa: B023
        yield Figure(
            f"fft-crop.seconds_{name}",
            ours,
            "s",
            peer="floor: torch.fft.rfft2",
            peer_value=floor,
            ratio=floor / ours,
        )
