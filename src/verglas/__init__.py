"""Cryo-EM movies, micrographs and tilt series to clean micrographs, tomograms and averaged structures."""

import os
from typing import Any

__version__ = "0.1.0"

# Threads that wait for one another spin by default. On a machine that does anything else beside, that made steps ten
# times slower; asleep they cost a few per cent at most. OpenMP reads this as it is loaded, which is with torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    # The facade loads torch; `import verglas` and `verglas --help` should not.
    import importlib

    api = importlib.import_module("verglas.api")
    if name in api.__all__:
        return getattr(api, name)
    raise AttributeError(f"module 'verglas' has no attribute {name!r}")
