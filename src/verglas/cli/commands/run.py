"""`verglas run`: a pipeline from a file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from verglas.pipeline import Job
    from verglas.steps.step import RunReport, Step


def run(
    pipeline: Annotated[Path, Parameter(help="TOML file of jobs.")],
    *,
    out: Annotated[Path, Parameter(help="Folder of the job folders.")],
    device: Annotated[str, Parameter(help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[int, Parameter(help="Items done at the same time, each in its own process.")] = 1,
    check: Annotated[bool, Parameter(help="Only check the file, and list its jobs.", negative="")] = False,
    overwrite: Annotated[
        bool, Parameter(help="Do again the jobs whose parameters or inputs have changed.", negative="")
    ] = False,
    quiet: Annotated[bool, Parameter(help="Show no progress.", negative="")] = False,
) -> int:
    """Run the jobs of a file one after the other, and write one report of all.

    The file is checked whole before the first job starts. Run it again, and it does only what is missing.
    """
    from verglas.cli.validation import build_params
    from verglas.pipeline import read_pipeline, run_pipeline
    from verglas.report import write_report
    from verglas.steps.step import RunOptions

    jobs = read_pipeline(pipeline, out, load_step, lambda model, values: build_params(model, values, None))
    if check:
        print("\n".join(f"{job.name}: {job.step.name}" for job in jobs))
        return 0
    options = RunOptions(device=device, workers=workers, quiet=quiet)
    ran, failed = run_pipeline(jobs, options, tell_failures if quiet else tell, renew=overwrite)
    print(write_report([job.folder for job in ran], out / "report.html"))
    return int(failed)


def load_step(name: str) -> "Step[Any]":
    """Find the step that a command runs, or raise a `UserError`."""
    from verglas.cli.registry import STEPS
    from verglas.cli.step_command import load_step
    from verglas.errors import UserError, tell_nearest

    paths = {command.name: command.step for command in STEPS}
    if name not in paths:
        asked = tell_nearest(name, paths)
        raise UserError(f"there is no step {name!r}{asked or '; expected one of ' + ', '.join(paths)}")
    return load_step(paths[name])


def tell(job: "Job", report: "RunReport") -> None:
    """Say what a job found."""
    from verglas.cli.step_command import list_findings
    from verglas.exec import format_duration

    done = f"done in {format_duration(report.seconds)}" if report.done else "done before"
    lines = [f"{job.name}: {done if report.summary else 'failed'}"]
    if report.summary:
        lines += list_findings(report.summary)
    print("\n".join(lines), file=sys.stderr, flush=True)
    tell_failures(job, report)


def tell_failures(job: "Job", report: "RunReport") -> None:
    """Say which items failed, and why."""
    for name, error in report.failed.items():
        print(f"{job.name}: {name} failed: {error}", file=sys.stderr, flush=True)
