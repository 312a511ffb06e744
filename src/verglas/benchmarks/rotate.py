"""`verglas bench rotate`: turning a volume."""

from collections.abc import Iterator

import torch

from verglas.benchmarks.harness import Figure, measure_time
from verglas.ops.interpolation import rotate_volume
from verglas.ops.rotation import euler_to_matrices
from verglas.runtime import available_cores, choose_device, set_threads


def run(quick: bool) -> Iterator[Figure]:
    """Turn a cube by one rotation, beside torch's own grid_sample."""
    set_threads(available_cores())
    size = 96 if quick else 256
    for name in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        device = choose_device(name)
        volume = torch.randn(size, size, size, device=device)
        rotation = euler_to_matrices(torch.tensor([20.0, 40.0, 60.0], device=device))
        grid = torch.nn.functional.affine_grid(
            torch.cat([rotation, torch.zeros(3, 1, device=device)], dim=1)[None],
            [1, 1, size, size, size],
            False,
        )
        peer = measure_time(
            lambda: torch.nn.functional.grid_sample(volume[None, None], grid, align_corners=False)  # noqa: B023
        ).median
        for order in ("linear", "cubic"):
            ours = measure_time(lambda: rotate_volume(volume, rotation, order)).median  # noqa: B023
            yield Figure(
                f"rotate.{order}_{name}",
                ours,
                "s",
                peer="torch grid_sample, trilinear, its grid not counted",
                peer_value=peer,
                ratio=peer / ours,
            )
