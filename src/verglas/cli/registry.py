"""Which commands there are, and where they live. Nothing here is imported before it is called."""

from dataclasses import dataclass

FRAMES = "Frames"
TILT_SERIES = "Tilt series"
SUBTOMOGRAMS = "Subtomograms"
SUBTRACTION = "Subtraction"
WHOLE = "Whole"

GROUPS = (FRAMES, TILT_SERIES, SUBTOMOGRAMS, SUBTRACTION, WHOLE)


@dataclass(frozen=True)
class StepCommand:
    """A command that runs a step.

    Parameters
    ----------
    name
        What the user types; `NAME WORD` is a command below the step `NAME`.
    step
        Dotted path of the `Step` object.
    group
        One of `GROUPS`.
    help
        One line for `verglas --help`.
    """

    name: str
    step: str
    group: str
    help: str


@dataclass(frozen=True)
class PlainCommand:
    """A command of its own.

    Parameters
    ----------
    name
        What the user types.
    function
        `module:function`, as cyclopts imports it.
    group
        One of `GROUPS`.
    help
        One line for `verglas --help`.
    """

    name: str
    function: str
    group: str
    help: str


@dataclass(frozen=True)
class Family:
    """A word above several steps that is no step itself.

    Parameters
    ----------
    name
        What the user types first.
    group
        One of `GROUPS`.
    help
        One line for `verglas --help`.
    """

    name: str
    group: str
    help: str


FAMILIES = (Family("membranes", SUBTRACTION, "Find membranes, and take them out of images."),)

STEPS = (
    StepCommand("motion", "verglas.steps.motion.MOTION_STEP", FRAMES, "Take the motion out of movies."),
    StepCommand(
        "preprocess",
        "verglas.steps.preprocess.PREPROCESS_STEP",
        FRAMES,
        "Work on micrographs before they are used.",
    ),
    StepCommand(
        "preprocess train",
        "verglas.steps.train_denoiser.TRAIN_DENOISER_STEP",
        FRAMES,
        "Train the network that takes noise off micrographs.",
    ),
    StepCommand(
        "select", "verglas.steps.select.SELECT_STEP", FRAMES, "Keep or drop micrographs and tilt series."
    ),
    StepCommand(
        "import",
        "verglas.steps.import_series.IMPORT_STEP",
        TILT_SERIES,
        "Import tilt series with the alignment that other programs found.",
    ),
    StepCommand(
        "stack",
        "verglas.steps.stack.STACK_STEP",
        TILT_SERIES,
        "Stack tilt series from SerialEM's mdocs and images.",
    ),
    StepCommand(
        "align-tilts",
        "verglas.steps.align_tilts.ALIGN_TILTS_STEP",
        TILT_SERIES,
        "Align tilt series by their gold beads.",
    ),
    StepCommand(
        "fiducials",
        "verglas.steps.fiducials.FIDUCIALS_STEP",
        TILT_SERIES,
        "Find gold beads, mask them, and erase them with matched noise.",
    ),
    StepCommand(
        "fiducials train",
        "verglas.steps.train_fiducials.TRAIN_FIDUCIALS_STEP",
        TILT_SERIES,
        "Train the network that masks what is no specimen.",
    ),
    StepCommand(
        "ctf",
        "verglas.steps.ctf.CTF_STEP",
        FRAMES,
        "Estimate the defocus of micrographs, movies and aligned tilt series.",
    ),
    StepCommand(
        "reconstruct",
        "verglas.steps.reconstruct.RECONSTRUCT_STEP",
        TILT_SERIES,
        "Reconstruct tomograms from aligned tilt series.",
    ),
    StepCommand(
        "match",
        "verglas.steps.match.MATCH_STEP",
        SUBTOMOGRAMS,
        "Find molecules in tomograms by templates.",
    ),
    StepCommand(
        "picks",
        "verglas.steps.picks.PICKS_STEP",
        SUBTOMOGRAMS,
        "Import the picks of other programs.",
    ),
    StepCommand(
        "particles",
        "verglas.steps.particles.PARTICLES_STEP",
        SUBTOMOGRAMS,
        "Assign half sets, and remove duplicates and poor particles.",
    ),
    StepCommand(
        "export",
        "verglas.steps.export.EXPORT_STEP",
        SUBTOMOGRAMS,
        "Export particles to RELION, Warp, Dynamo, emClarity and cisTEM.",
    ),
    StepCommand(
        "export series",
        "verglas.steps.export_series.EXPORT_SERIES_STEP",
        TILT_SERIES,
        "Export alignments and CTFs to Warp, IMOD, AreTomo and emClarity.",
    ),
    StepCommand(
        "average",
        "verglas.steps.average.AVERAGE_STEP",
        SUBTOMOGRAMS,
        "Average particles from their tilt images.",
    ),
    StepCommand(
        "align",
        "verglas.steps.align.ALIGN_STEP",
        SUBTOMOGRAMS,
        "Align particles to an average or a first reference.",
    ),
    StepCommand("pca", "verglas.steps.pca.PCA_STEP", SUBTOMOGRAMS, "Find how particles differ."),
    StepCommand(
        "cluster",
        "verglas.steps.cluster.CLUSTER_STEP",
        SUBTOMOGRAMS,
        "Sort particles into classes by how they differ.",
    ),
    StepCommand(
        "fsc",
        "verglas.steps.fsc.FSC_STEP",
        SUBTOMOGRAMS,
        "Correlate two half maps.",
    ),
    StepCommand(
        "regions",
        "verglas.steps.regions.REGIONS_STEP",
        TILT_SERIES,
        "Choose parts of specimens to work on alone.",
    ),
    StepCommand(
        "mask",
        "verglas.steps.mask.MASK_STEP",
        SUBTOMOGRAMS,
        "Make masks: shapes with soft edges, or from densities.",
    ),
    StepCommand(
        "symmetry",
        "verglas.steps.symmetry.SYMMETRY_STEP",
        SUBTOMOGRAMS,
        "Average maps over a point group, and find its axes.",
    ),
    StepCommand(
        "helix",
        "verglas.steps.helix.HELIX_STEP",
        SUBTOMOGRAMS,
        "Measure the helical lattice of tubes.",
    ),
    StepCommand(
        "rescale",
        "verglas.steps.rescale.RESCALE_STEP",
        SUBTOMOGRAMS,
        "Resample maps to another voxel size.",
    ),
    StepCommand(
        "subtract",
        "verglas.steps.subtract.SUBTRACT_STEP",
        SUBTRACTION,
        "Take a part of a map out of particle images.",
    ),
    StepCommand(
        "subtract revert",
        "verglas.steps.subtract_revert.SUBTRACT_REVERT_STEP",
        SUBTRACTION,
        "Give subtracted particles their original images.",
    ),
    StepCommand(
        "membranes analyze",
        "verglas.steps.membranes_analyze.MEMBRANES_ANALYZE_STEP",
        SUBTRACTION,
        "Find the membranes of 2-D class averages.",
    ),
    StepCommand(
        "membranes subtract",
        "verglas.steps.membranes_subtract.MEMBRANES_SUBTRACT_STEP",
        SUBTRACTION,
        "Take membranes out of particles.",
    ),
    StepCommand(
        "membranes micrographs",
        "verglas.steps.membranes_micrographs.MEMBRANES_MICROGRAPHS_STEP",
        SUBTRACTION,
        "Take membranes out of micrographs by their particles.",
    ),
    StepCommand(
        "membranes trace",
        "verglas.steps.membranes_trace.MEMBRANES_TRACE_STEP",
        SUBTRACTION,
        "Trace membranes in whole micrographs, and take them out.",
    ),
    StepCommand(
        "simulate",
        "verglas.steps.simulate.SIMULATE_STEP",
        WHOLE,
        "Simulate tilt series with known truth.",
    ),
    StepCommand("compare", "verglas.steps.compare.COMPARE_STEP", WHOLE, "Compare tomograms with the truth."),
    StepCommand(
        "compare average",
        "verglas.steps.compare_average.COMPARE_AVERAGE_STEP",
        WHOLE,
        "Compare an average and its poses with the truth.",
    ),
)

COMMANDS = (
    PlainCommand(
        "demo",
        "verglas.cli.commands.demo:demo",
        WHOLE,
        "Simulate, go from raw tilts to an average, compare, report.",
    ),
    PlainCommand("run", "verglas.cli.commands.run:run", WHOLE, "Run the jobs of a file, and report on all."),
    PlainCommand("report", "verglas.cli.commands.report:report", WHOLE, "Rebuild the report of job folders."),
    PlainCommand("doctor", "verglas.cli.commands.doctor:doctor", WHOLE, "Show what this machine offers."),
    PlainCommand("bench", "verglas.cli.commands.bench:bench", WHOLE, "Measure speed and correctness."),
)
