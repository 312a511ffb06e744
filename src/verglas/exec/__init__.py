"""How items are run: one after the other here, or in several processes; failures cost only their item."""

from verglas.exec.outcome import Later, Outcome
from verglas.exec.progress import format_duration, open_progress
from verglas.exec.run import choose_worker_device, run_items, take_shard
from verglas.exec.threads import limit_threads

__all__ = [
    "Later",
    "Outcome",
    "choose_worker_device",
    "format_duration",
    "limit_threads",
    "open_progress",
    "run_items",
    "take_shard",
]
