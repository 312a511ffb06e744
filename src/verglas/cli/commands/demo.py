"""`verglas demo`: from nothing to a tomogram and a report of it, in a minute."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from verglas.steps.simulate import SimulateParams
    from verglas.steps.step import RunOptions


def demo(
    *,
    out: Annotated[Path, Parameter(help="Folder to write.")] = Path("demo"),
    device: Annotated[str, Parameter(help="auto, cpu, cuda or cuda:N.")] = "auto",
    overwrite: Annotated[
        bool, Parameter(help="Remove what the folder holds of an earlier demo first.", negative="")
    ] = False,
    quiet: Annotated[bool, Parameter(help="Show no progress.", negative="")] = False,
) -> int:
    """Simulate a tilt series, reconstruct it, hold the tomogram against the truth, and write one report.

    Three job folders are made: simulate, reconstruct and compare. Run it again, and it does only what is missing.
    """
    from verglas.steps.step import RunOptions

    options = RunOptions(device=device, overwrite=overwrite, quiet=quiet)
    page, failed = run_demo(out, choose_simulation(), options)
    print(page)
    return int(failed)


def choose_simulation() -> "SimulateParams":
    """Choose a specimen worth looking at: ribosomes, a vesicle in the middle of the ice, gold."""
    from verglas.steps.simulate import SimulateParams

    return SimulateParams(
        # With this seed the vesicle lies whole in the central sections.
        name="demo",
        seed=52,
        image_size=(384, 384),
        thickness=1200.0,
        copies=80,
        vesicle_radius=450.0,
    )


def run_demo(out: Path, simulation: "SimulateParams", options: "RunOptions") -> tuple[Path, bool]:
    """Run the three steps in folders below `out`.

    Returns
    -------
    page, failed
        The report on those that ran, and whether an item failed, after which no further step runs.
    """
    from verglas.exec import format_duration
    from verglas.report import write_report
    from verglas.steps.compare import COMPARE_STEP, CompareParams
    from verglas.steps.reconstruct import RECONSTRUCT_STEP, ReconstructParams
    from verglas.steps.simulate import SIMULATE_STEP
    from verglas.steps.step import run_step

    folders = [out / name for name in ("simulate", "reconstruct", "compare")]
    # The truth's geometry, so that what differs from the truth is the reconstruction's doing alone.
    reconstruction = ReconstructParams(
        tilt_series=folders[0] / "truth/tilt_series.star",
        pixel_size=simulation.truth_voxel_size or simulation.pixel_size,
        ctf="flip",
    )
    comparison = CompareParams(tomograms=folders[1] / "tomograms.star", simulation=folders[0])
    work: tuple[tuple[Any, Any], ...] = (
        (SIMULATE_STEP, simulation),
        (RECONSTRUCT_STEP, reconstruction),
        (COMPARE_STEP, comparison),
    )
    for number, ((step, params), folder) in enumerate(zip(work, folders, strict=True), start=1):
        report = run_step(step, params, folder, options=options)
        if not options.quiet:
            told = f"done in {format_duration(report.seconds)}" if report.done else "done before"
            print(f"{step.name}: {told}", file=sys.stderr)
        if report.failed:
            print(*(f"  {name}: {error}" for name, error in report.failed.items()), sep="\n", file=sys.stderr)
            return write_report(folders[:number], out / "report.html"), True
    return write_report(folders, out / "report.html"), False
