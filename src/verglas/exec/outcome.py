"""How one item went, and what keeps its failure to itself."""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from verglas.errors import VerglasError

T = TypeVar("T")

WORKER_VARIABLE = "VERGLAS_WORKER"
"""Environment variable that tells a worker process its number."""


@dataclass(frozen=True)
class Outcome:
    """How one item went.

    Parameters
    ----------
    name
        Of the item.
    value
        What the function returned; none when it raised.
    error
        One sentence on why it failed, else empty.
    traceback
        Where a bug showed, else empty.
    seconds
        Wall time.
    """

    name: str
    value: Any = None
    error: str = ""
    traceback: str = ""
    seconds: float = 0.0


def guard(function: Callable[[T], Any], name: str, item: T) -> Outcome:
    """Call `function` and turn what it raises into an outcome."""
    started = time.perf_counter()
    try:
        value = function(item)
    except Exception as error:
        # Where it was raised matters for a bug; in an error that the user can mend it hides the sentence.
        on_purpose = isinstance(error, VerglasError)
        told = str(error) if on_purpose else f"{type(error).__name__}: {error}"
        return Outcome(
            name,
            error=" ".join(told.split()),
            traceback="" if on_purpose else traceback.format_exc(),
            seconds=time.perf_counter() - started,
        )
    return Outcome(name, value, seconds=time.perf_counter() - started)
