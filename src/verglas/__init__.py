"""Cryo-EM movies, micrographs and tilt series to clean micrographs, tomograms and averaged structures."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # The facade loads torch; `import verglas` and `verglas --help` should not.
    import importlib

    api = importlib.import_module("verglas.api")
    if name in api.__all__:
        return getattr(api, name)
    raise AttributeError(f"module 'verglas' has no attribute {name!r}")
