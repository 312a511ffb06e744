"""`membranes subtract`: the membranes of class averages taken out of the particles of the classes.

What the job folder holds
-------------------------
==========================  ==================================================================================
`particles.star` or `.cs`   the table that came in, with the new images
`stacks/<part>.mrcs`        the images without membranes, 500 particles each
`classes.json`              profiles of the membranes of each class, how far they lie from the poses, the power of
                            the noise by frequency, and blocks in which the class has something else
==========================  ==================================================================================
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from verglas.errors import UserError
from verglas.files import check_exists
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    from verglas.algo.membranes.particles import Fit, Region
    from verglas.algo.membranes.sets import ClassModel, Particle

PART = 500
"""Particles of an item."""

_EXAMPLES = 8

FloatArray = npt.NDArray[np.floating]


class MembranesSubtractParams(Params):
    """Take the membranes of class averages out of particles: each followed, scaled, and what is on it left."""

    particles: Annotated[
        Path, Field(description="`particles.star` of RELION or `.cs` of cryoSPARC with 2-D classes and poses")
    ]
    membranes: Annotated[
        Path,
        Field(
            description="`membranes.star` of `membranes analyze`, or `mem_analysis.star` of MemXTerminator"
        ),
    ]
    scale: Annotated[
        Literal["squares", "absolute"],
        Field(description="what each particle's scale makes smallest: squares, or absolute values (L1)"),
    ] = "squares"
    ctf: Annotated[
        bool, Field(description="apply each particle's transfer function to one profile of the class")
    ] = False
    float16: Annotated[bool, Field(description="write 16-bit floats, MRC mode 12; RELION 4 and later")] = (
        False
    )


def list_items(params: MembranesSubtractParams) -> list[Item]:
    """One item for 500 particles; it depends on their stacks, and profiles come from a sample of all."""
    from verglas.io.flat_particles import read_flat_particles

    check_exists(params.membranes, "table of membranes")
    particles = read_flat_particles(params.particles)
    if params.ctf and not particles.has_ctf:
        raise UserError(f"`ctf` needs a defocus for each particle; {str(params.particles)!r} has none")
    images = particles.table.particles.images
    items = []
    for number, start in enumerate(range(0, len(images), PART), 1):
        stop = min(len(images), start + PART)
        stacks = dict.fromkeys(image.path for image in images[start:stop])
        items.append(Item(f"part_{number:05d}", (start, stop), (params.particles, params.membranes, *stacks)))
    return items


def run_item(item: Item, params: MembranesSubtractParams, context: Context) -> ItemResult:
    """Subtract from the particles of one part."""
    from verglas.io.arrays import write_arrays
    from verglas.io.flat_particles import read_flat_particles
    from verglas.io.membranes import read_membranes
    from verglas.io.mrc import create_mrc, read_images
    from verglas.io.mrc_header import read_mrc_header
    from verglas.steps.membrane_models import find_models, read_batch

    particles = read_flat_particles(params.particles)
    table = particles.table.particles
    box = read_mrc_header(check_exists(table.images[0].path, "stack")).shape[-1]
    records = read_membranes(params.membranes)
    models, digest = find_models(particles, records, box, context.folder / "classes.json", ctf=params.ctf)
    rows = np.arange(*item.record)
    pixel = table.optics[table.optics_group[rows[0]]].pixel_size_angstrom
    kept = _Kept(len(rows), models)
    stack = f"stacks/{item.name}.mrcs"
    with create_mrc(
        context.folder / stack,
        (len(rows), box, box),
        voxel_size_angstrom=pixel,
        dtype=np.float16 if params.float16 else np.float32,
        is_stack=True,
    ) as writer:
        for place, row in enumerate(rows):
            model = models.get(int(particles.class_number[row]))
            if model is None:
                writer.write(read_images([table.images[row]])[0])
                continue
            particle = next(read_batch(particles, rows[place : place + 1], model, ctf=params.ctf))
            writer.write(kept.subtract(place, model, particle, absolute=params.scale == "absolute"))
    arrays = kept.pack()
    write_arrays(context.folder / f"parts/{item.name}.npz", arrays)
    told = {"particles": len(rows), "subtracted": int((arrays["scale"] != 0).sum()), "models": digest}
    return ItemResult((stack, f"parts/{item.name}.npz"), told)


class _Kept:
    """What is kept of a part for the report."""

    def __init__(self, count: int, models: "dict[int, ClassModel]") -> None:
        self._values = {name: np.zeros(count) for name in ("scale", "error", "shift", "left_out")}
        self._examples: list[npt.NDArray[np.float32]] = []
        widest = max((len(one.profiles[0].coefficients) for one in models.values()), default=4)
        self._lines = np.zeros((3, widest))

    def subtract(
        self, place: int, model: "ClassModel", particle: "Particle", *, absolute: bool
    ) -> npt.NDArray[np.float32]:
        """Return the particle without its membranes."""
        from verglas.algo.membranes.sets import fit_particle

        region, values, fit = fit_particle(model, particle, absolute=absolute)
        after = np.array(particle.image, dtype=np.float32)
        after.reshape(-1)[region.pixels] -= fit.membrane.astype(np.float32)
        self._values["scale"][place] = fit.scales[0]
        self._values["error"][place] = fit.errors[0]
        self._values["shift"][place] = fit.moves[0, 0]
        self._values["left_out"][place] = float((fit.weight < 0.5).mean())
        self._add_line(region, values, fit, model)
        if len(self._examples) < _EXAMPLES:
            self._examples.append(np.stack([particle.image, after]).astype(np.float32))
        return after

    def _add_line(self, region: "Region", values: npt.NDArray[Any], fit: "Fit", model: "ClassModel") -> None:
        """Add the grey across the first membrane, before and after."""
        size = self._lines.shape[1]
        shift = fit.moves[0, 0]
        bins = np.rint(region.distance[0] - shift).astype(np.int64) + size // 2
        inside = (bins >= 0) & (bins < size) & (fit.weight > 0.5)
        sign = 1.0 if fit.scales[0] >= 0 else -1.0
        before = sign * (values - fit.background)[inside]
        self._lines[0] += np.bincount(bins[inside], minlength=size)
        self._lines[1] += np.bincount(bins[inside], before, minlength=size)
        self._lines[2] += np.bincount(bins[inside], before - sign * fit.membrane[inside], minlength=size)

    def pack(self) -> dict[str, npt.NDArray[Any]]:
        """Return all as arrays."""
        examples = (
            np.array(self._examples, np.float32) if self._examples else np.zeros((0, 2, 1, 1), np.float32)
        )
        return {**self._values, "lines": self._lines, "examples": examples}


def summarise(results: dict[str, ItemResult], params: MembranesSubtractParams, folder: Path) -> Summary:
    """Write the table, and say how strong the membranes were and what is left on average."""
    from dataclasses import replace

    from verglas.algo.membranes.particles import BOUND
    from verglas.io.arrays import read_arrays
    from verglas.io.flat_particles import read_flat_particles, write_flat_particles
    from verglas.io.mrc_header import read_mrc_header
    from verglas.model import ImageReference
    from verglas.steps.membranes_verdict import judge_membranes

    particles = read_flat_particles(params.particles)
    table = particles.table
    parts = {name: read_arrays(folder / f"parts/{name}.npz", "a part") for name in results}
    values = {
        name: np.concatenate([part[name] for part in parts.values()])
        for name in ("scale", "error", "shift", "left_out")
    }
    rows = [row for name in results for row in range(*_rows_of(name, len(table.names)))]
    images = [
        ImageReference(folder / f"stacks/{name}.mrcs", row)
        for name, one in results.items()
        for row in range(one.values["particles"])
    ]
    box = read_mrc_header(images[0].path).shape[-1]
    suffix = params.particles.suffix
    columns = {"vglMembraneScale": values["scale"], "vglMembraneScaleError": values["error"]}
    write_flat_particles(
        folder / f"particles{suffix}", replace(particles, table=table.take(rows)), images, columns, box=box
    )
    done = values["scale"] != 0
    pixel = table.particles.optics[0].pixel_size_angstrom
    lines = np.sum([part["lines"].astype(float) for part in parts.values()], axis=0)
    before, after = lines[1:] / np.maximum(lines[0], 1)
    left = float(np.sqrt((after**2).sum() / max((before**2).sum(), 1e-30)))
    seen = {name: one[done] for name, one in values.items()}
    figures = _draw(list(parts.values()), seen, (before, after), pixel, folder) if done.any() else []
    verdict = judge_membranes(**seen, left=left, bound=BOUND)
    told = {
        "verdict": Value(verdict.sentence, "", "of the scales and of the mean grey across the membranes"),
        "particles": Value(len(rows), "", f"{int(done.sum())} of them with membranes"),
        **_tell(seen, left, pixel),
    }
    warnings = list(verdict.faults)
    if len({one.values["models"] for one in results.values()}) > 1:
        warnings.append(
            "stacks changed while the job was interrupted: not all particles were fitted with the same profiles; "
            "run it again into a new folder"
        )
    if not done.all():
        warnings.append(
            f"{int((~done).sum())} particles are of classes without membranes and were copied unchanged"
        )
    return Summary(figures, told, warnings, [f"particles{suffix}"])


def _draw(
    parts: list[dict[str, npt.NDArray[Any]]],
    seen: dict[str, FloatArray],
    across: tuple[FloatArray, FloatArray],
    pixel: float,
    folder: Path,
) -> list[Figure]:
    """Draw some particles, what was found in all, and the mean grey across the membranes before and after."""
    from verglas.figures.membranes import draw_fits, draw_subtracted

    examples = np.concatenate([part["examples"] for part in parts if len(part["examples"])])
    draw_subtracted(
        [(one[0], one[1]) for one in examples[:_EXAMPLES]], pixel, folder / "figures/particles.png"
    )
    distance = (np.arange(len(across[0])) - len(across[0]) // 2) * pixel
    lines = [("first membranes", distance, *across)]
    draw_fits(seen["scale"], seen["shift"] * pixel, lines, folder / "figures/fits.png")
    return [
        Figure("figures/particles.png", "particles before and after, smoothed for the eye"),
        Figure(
            "figures/fits.png", "scales, how far membranes lay from their poses, and the grey across them"
        ),
    ]


def _tell(seen: dict[str, FloatArray], left: float, pixel: float) -> dict[str, Value]:
    """Figures of the particles with membranes; zero where there are none."""
    scale, shift, out = (
        seen[name] if len(seen[name]) else np.zeros(1) for name in ("scale", "shift", "left_out")
    )
    return {
        "scale": Value(round(float(scale.mean()), 4), "", "of the class's membrane in a particle; the mean"),
        "scatter": Value(round(float(scale.std()), 4), "", "of the scales"),
        "moved": Value(round(float(np.sqrt(np.mean(shift**2))) * pixel, 2), "Å", "across, root mean square"),
        "left": Value(round(100 * left, 2), "%", "of the mean grey across the membranes is still there"),
        "left out": Value(
            round(100 * float(out.mean()), 2),
            "%",
            "of the pixels near membranes held for something else and not fitted",
        ),
    }


def _rows_of(name: str, count: int) -> tuple[int, int]:
    start = (int(name.removeprefix("part_")) - 1) * PART
    return start, min(count, start + PART)


def estimate(items: list[Item], params: MembranesSubtractParams) -> Estimate:
    """From the number of particles and their size, by times measured on one core."""
    from verglas.io.flat_particles import read_flat_particles
    from verglas.io.mrc_header import read_mrc_header

    images = read_flat_particles(params.particles).table.particles.images
    pixels = float(np.prod(read_mrc_header(check_exists(images[0].path, "stack")).shape[1:]))
    seconds = (len(images) + 900) * pixels * 4e-7
    return Estimate(400 << 20, int(len(images) * pixels * (2 if params.float16 else 4)), 5.0 + seconds)


MEMBRANES_SUBTRACT_STEP = Step(
    "membranes subtract", MembranesSubtractParams, list_items, run_item, summarise, estimate
)
"""Membranes taken out of particles."""
