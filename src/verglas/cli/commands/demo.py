"""`verglas demo`: from nothing, by raw tilt series, to an average beside the truth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from verglas.steps.simulate import SimulateParams
    from verglas.steps.step import RunOptions

PIPELINE = Path(__file__).with_name("demo.toml")
"""What is done with the simulated series."""


def demo(
    *,
    out: Annotated[Path, Parameter(help="Folder to write.")] = Path("demo"),
    device: Annotated[str, Parameter(help="auto, cpu, cuda or cuda:N.")] = "auto",
    overwrite: Annotated[
        bool, Parameter(help="Remove what the folder holds of an earlier demo first.", negative="")
    ] = False,
    quiet: Annotated[bool, Parameter(help="Show no progress.", negative="")] = False,
) -> int:
    """Simulate tilt series, take them from raw stacks to an average, and write one report with the truth beside it.

    What is done is written to `pipeline.toml` in the folder, for `verglas run`. Run it again, and it does only what
    is missing.
    """
    from verglas.runtime import available_cores
    from verglas.steps.step import RunOptions

    options = RunOptions(device=device, workers=min(2, available_cores()), overwrite=overwrite, quiet=quiet)
    page, failed = run_demo(out, choose_simulation(), PIPELINE.read_text(encoding="utf-8"), options)
    print(page)
    return int(failed)


def choose_simulation() -> "SimulateParams":
    """Choose specimens worth looking at: ribosomes, a vesicle, gold to align by."""
    from verglas.steps.simulate import SimulateParams

    return SimulateParams(
        name="demo",
        count=2,
        seed=52,
        image_size=(400, 400),
        pixel_size=8.0,
        thickness=1200.0,
        copies=45,
        vesicle_radius=400.0,
    )


def run_demo(
    out: Path, simulation: "SimulateParams", pipeline: str, options: "RunOptions"
) -> tuple[Path, bool]:
    """Simulate into the folder `simulate` below `out`, then run a pipeline beside it.

    Parameters
    ----------
    out
        Folder to write.
    simulation
        What is simulated.
    pipeline
        TOML for `verglas run`, with paths relative to `out`; it is written there.
    options
        How each step is run.

    Returns
    -------
    page, failed
        The report on the jobs that ran, and whether an item failed.
    """
    from verglas.cli.commands.run import load_step, tell, tell_failures
    from verglas.cli.validation import build_params
    from verglas.files import write_text
    from verglas.pipeline import Job, read_pipeline, run_pipeline
    from verglas.report import write_report
    from verglas.steps.simulate import SIMULATE_STEP

    first = Job("simulate", SIMULATE_STEP, simulation, out / "simulate")
    ran, failed = run_pipeline([first], options, tell_failures if options.quiet else tell)
    if not failed:
        write_text(out / "pipeline.toml", pipeline)
        jobs = read_pipeline(
            out / "pipeline.toml", out, load_step, lambda model, values: build_params(model, values, None)
        )
        done, failed = run_pipeline(jobs, options, tell_failures if options.quiet else tell)
        ran = [*ran, *done]
    return write_report([job.folder for job in ran], out / "report.html"), failed
