"""How one item went, and what keeps its failure to itself."""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from verglas.errors import VerglasError, tell_refusal

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


@dataclass(frozen=True)
class Later:
    """What a function returns when the rest of its item need not hold up the next one.

    Parameters
    ----------
    finish
        Does the rest; the item is done when it returns, and what it returns is the item's value.
    """

    finish: Callable[[], Any]


def guard(function: Callable[[T], Any], name: str, item: T) -> Outcome:
    """Call `function` and turn what it raises into an outcome."""
    started = time.perf_counter()
    try:
        value = function(item)
    except Exception as error:
        told = _tell(error)
        return Outcome(
            name,
            error=" ".join((told or f"{type(error).__name__}: {error}").split()),
            # Where it was raised matters for a bug; with an error that the user can mend it hides the sentence.
            traceback="" if told else traceback.format_exc(),
            seconds=time.perf_counter() - started,
        )
    return Outcome(name, value, seconds=time.perf_counter() - started)


def complete(outcome: Outcome) -> Outcome:
    """Do what is left of an item, if anything is."""
    if not isinstance(outcome.value, Later):
        return outcome
    rest = guard(lambda later: later.finish(), outcome.name, outcome.value)
    return replace(rest, seconds=outcome.seconds + rest.seconds)


def guard_whole(function: Callable[[T], Any], name: str, item: T) -> Outcome:
    """Call `function` and do what it left for later."""
    return complete(guard(function, name, item))


def _tell(error: Exception) -> str | None:
    """Say what the user can mend; None for a bug."""
    if isinstance(error, VerglasError):
        return str(error) or type(error).__name__
    if isinstance(error, OSError) and (told := tell_refusal(error)):
        return told
    # On the CPU torch tells of a lack of memory in a plain RuntimeError.
    is_torchs = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    if isinstance(error, MemoryError) or is_torchs or type(error).__name__ == "OutOfMemoryError":
        return f"it does not fit in memory ({error}); expected a smaller one or a larger machine"
    return None
