"""`verglas doctor`: what this machine offers, and what is missing."""

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from verglas import __version__

_PACKAGES = (
    "torch",
    "numba",
    "triton",
    "numpy",
    "scipy",
    "pandas",
    "dask",
    "distributed",
    "mrcfile",
    "matplotlib",
)
_PROGRAMS = {
    "relion_reconstruct": "RELION: reads what verglas writes",
    "3dmod": "IMOD: looks at tomograms and models",
    "newstack": "IMOD: handles stacks",
    "sbatch": "SLURM: runs shards on a cluster",
}


def doctor() -> int:
    """Show versions, cores, memory, disk, GPUs and the optional programs of this machine."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"verglas {__version__}", title_justify="left", show_header=False, box=None, pad_edge=False
    )
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in [
        *_describe_machine(),
        *_describe_gpus(),
        *_describe_packages(),
        *_describe_programs(),
    ]:
        table.add_row(name, value)
    Console().print(table)
    return 0


def _describe_machine() -> list[tuple[str, str]]:
    from verglas.cli.estimate_command import format_bytes
    from verglas.runtime import available_cores, available_memory_bytes

    free = shutil.disk_usage(Path.cwd()).free
    return [
        ("system", platform.platform()),
        ("Python", platform.python_version()),
        ("cores", str(available_cores())),
        ("memory free", format_bytes(available_memory_bytes())),
        ("disk free here", format_bytes(free)),
    ]


def _describe_gpus() -> list[tuple[str, str]]:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        return [
            (
                "GPU",
                f"none usable (torch is built for CUDA {built})"
                if built
                else "none (torch is built for CPU)",
            )
        ]
    rows = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        rows.append((f"GPU cuda:{index}", f"{properties.name}, {memory:.0f} GiB, CUDA {torch.version.cuda}"))
    return rows


def _describe_packages() -> list[tuple[str, str]]:
    rows = []
    for name in _PACKAGES:
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            rows.append((name, "not installed"))
    return rows


def _describe_programs() -> list[tuple[str, str]]:
    return [
        (name, f"{shutil.which(name) or 'not found'} ({what}; optional)") for name, what in _PROGRAMS.items()
    ]
