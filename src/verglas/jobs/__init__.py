"""Job folders: what was run, with what, what is done, and who may write."""

from verglas.jobs.fingerprint import Fingerprint, digest_record, fingerprint_file
from verglas.jobs.folder import JobFolder, append_log
from verglas.jobs.lock import hold_lock
from verglas.jobs.matching import check_same_item, has_outputs
from verglas.jobs.records import ItemRecord, JobRecord, RunRecord, read_item, read_job, to_json, write_json
from verglas.jobs.session import close_run, describe_run, open_job, read_items

__all__ = [
    "Fingerprint",
    "ItemRecord",
    "JobFolder",
    "JobRecord",
    "RunRecord",
    "append_log",
    "check_same_item",
    "close_run",
    "describe_run",
    "digest_record",
    "fingerprint_file",
    "has_outputs",
    "hold_lock",
    "open_job",
    "read_item",
    "read_items",
    "read_job",
    "to_json",
    "write_json",
]
