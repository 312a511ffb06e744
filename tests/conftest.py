"""Fixtures that all tests share."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

import verglas  # noqa: F401 -- before torch, whose threads it tells to sleep
from tests import typecheck

# Every public op is run with its shape annotations enforced. Not the kernels, which numba compiles.
OPS = Path(__file__).parents[1] / "src" / "verglas" / "ops"
install_import_hook(
    [f"verglas.ops.{path.stem}" for path in OPS.glob("[a-z]*.py")], f"{typecheck.__name__}.check"
)

SHARED_DATA = Path(os.environ.get("VERGLAS_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data and reference files of other programs."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def relion(tmp_path: Path) -> Callable[..., str]:
    """Run a RELION program in the test's folder and return what it printed."""

    def run(program: str, *arguments: object) -> str:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
        done = subprocess.run(
            [program, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
