"""`subtract`: a part of a map taken out of particle images, each at its own contrast, and the proof that it worked.

What the job folder holds
-------------------------
==========================  ====================================================================================
`particles.star` or `.cs`   the table that came in, with the new images
`original.star` or `.cs`    the table that came in, for `subtract revert`
`stacks/<part>.mrcs`        the images without the part, 5000 particles each
`set.json`                  gain by frequency, noise and prior of each half set
`maps/before.mrc`           reconstruction of 2000 particles at most as they came, at most 64 voxels a side
`maps/after.mrc`            the same of the subtracted ones
`maps/kept.mrc`             the kept part of the map, moved and cut as the new images are
==========================  ====================================================================================
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, model_validator

from verglas.errors import UserError
from verglas.files import check_exists
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value
from verglas.steps.subtraction_report import draw_examples, draw_maps, draw_scales, judge

if TYPE_CHECKING:
    import torch

    from verglas.io.image_particles import ParticleTable
    from verglas.steps.subtraction_work import Maps

PART = 5000
"""Particles of an item."""

_PROCESS_BYTES = 400 << 20
_EXAMPLES = 4
_WORST = 8


class SubtractParams(Params):
    """Take a part of a map out of particle images: `keep` names what stays, or `remove` what goes."""

    model_config = ConfigDict(allow_inf_nan=False)

    particles: Annotated[
        Path,
        Field(
            description="`particles.star` of RELION 3.1 or later, or `.cs` of cryoSPARC, with poses and CTF"
        ),
    ]
    half1: Annotated[
        Path | None, Field(description="MRC map of half set 1, dense is bright; taken out of that half only")
    ] = None
    half2: Annotated[Path | None, Field(description="the same of half set 2")] = None
    map: Annotated[
        Path | None, Field(description="MRC map for all particles, instead of `half1` and `half2`")
    ] = None
    keep: Annotated[
        Path | None,
        Field(description="MRC mask, 0 to 1, of what stays; the rest is removed (as RELION's masks)"),
    ] = None
    remove: Annotated[
        Path | None, Field(description="MRC mask, 0 to 1, of what is removed (as cryoSPARC's masks)")
    ] = None
    by_frequency: Annotated[
        bool,
        Field(description="let poses that are not exact weaken what is taken out, frequency by frequency"),
    ] = True
    recentre: Annotated[
        bool, Field(description="bring the centre of mass of what is kept to the middle of the images")
    ] = False
    centre: Annotated[
        tuple[float, float, float] | None,
        Field(description="xyz in Å from the map's centre of what comes to the middle of the images"),
    ] = None
    box: Annotated[
        int | None,
        Field(
            ge=16,
            le=4096,
            multiple_of=2,
            description="side of the new images in pixels; that of the old ones",
        ),
    ] = None
    float16: Annotated[bool, Field(description="write 16-bit floats, MRC mode 12; RELION 4 and later")] = (
        False
    )

    @model_validator(mode="after")
    def _check_choices(self) -> Self:
        if (self.keep is None) == (self.remove is None):
            raise ValueError(
                f"expected one of `keep` and `remove`; got {'none' if self.keep is None else 'both'}"
            )
        halves = (self.half1 is not None) + (self.half2 is not None)
        if halves == 1 or (halves == 2) == (self.map is not None):
            given = [f"`{name}`" for name in ("half1", "half2", "map") if getattr(self, name) is not None]
            raise ValueError(
                f"expected `half1` and `half2`, or `map` alone; got {' and '.join(given) or 'none'}"
            )
        if self.recentre and self.centre is not None:
            raise ValueError("expected one of `recentre` and `centre`, and not both")
        return self


def _map_paths(params: SubtractParams) -> dict[int, Path]:
    if params.map is not None:
        return {0: params.map}
    return {half: path for half, path in ((1, params.half1), (2, params.half2)) if path is not None}


def list_items(params: SubtractParams) -> list[Item]:
    """One item for 5000 particles; each depends on the whole table, from which the prior comes."""
    _read_version.cache_clear()
    maps = [check_exists(path, "map") for path in _map_paths(params).values()]
    maps += [check_exists(path, "mask") for path in (params.keep, params.remove) if path]
    table = _read_table(params.particles)
    items = []
    for number, start in enumerate(range(0, len(table.names), PART), 1):
        stop = min(len(table.names), start + PART)
        stacks = dict.fromkeys(image.path for image in table.particles.images[start:stop])
        items.append(Item(f"part_{number:04d}", (start, stop), (params.particles, *maps, *stacks)))
    return items


def _read_table(path: Path) -> "ParticleTable":
    """Read the table once for all parts that this process does in a run."""
    told = check_exists(path, "particles").stat()
    return _read_version(path, told.st_mtime_ns, told.st_size)


@lru_cache(maxsize=1)
def _read_version(path: Path, changed: int, size: int) -> "ParticleTable":
    from verglas.io.image_particles import read_image_particles

    del changed, size
    return read_image_particles(path)


def run_item(item: Item, params: SubtractParams, context: Context) -> ItemResult:
    """Subtract from the particles of one part."""
    import torch

    from verglas.algo.subtraction.class_averages import Averages
    from verglas.algo.subtraction.windows import cut_windows
    from verglas.io.arrays import write_arrays
    from verglas.io.mrc import create_mrc
    from verglas.runtime import choose_device
    from verglas.steps import subtraction_work as work

    device = choose_device(context.device)
    particles = _read_table(params.particles).particles
    maps = work.read_maps(_map_paths(params), params.keep, params.remove)
    work.check_particles(particles, maps)
    model = work.make_model(particles, maps, device)
    fits = work.find_set_fits(
        particles, maps, model, by_frequency=params.by_frequency, path=context.folder / "set.json"
    )
    rows = np.arange(*item.record)
    box = params.box or maps.size
    moves = _find_centres(particles.angles_deg, particles.origins_angstrom, maps, params)
    stack, values = f"stacks/{item.name}.mrcs", []
    proof, chosen = work.make_proof(maps, device), work.choose_proof(len(particles))
    averages = Averages(particles.angles_deg, maps.size)
    examples: list[npt.NDArray[np.float32]] = []
    with (
        create_mrc(
            context.folder / stack,
            (len(rows), box, box),
            voxel_size_angstrom=maps.pixel_size_angstrom,
            dtype=np.float16 if params.float16 else np.float32,
            is_stack=True,
        ) as writer,
        work.write_behind(writer) as write,
    ):
        for batch in work.iterate_batches(particles, rows, model):
            done = work.subtract_batch(batch, particles, fits)
            work.add_proof(proof, batch, done, chosen)
            averages.add(batch.rows, batch.slices, done.slices, batch.change)
            images, outside = done.after, np.zeros(len(batch.rows))
            if moves is not None or box != maps.size:
                centres = np.zeros((len(batch.rows), 2)) if moves is None else moves[batch.rows]
                images, outside = cut_windows(images, torch.from_numpy(centres), box)
            write(images.cpu().numpy())
            values.append({**done.values, "outside": outside})
            if len(examples) < _EXAMPLES:
                examples += _take_examples(batch.images, done.after, _EXAMPLES - len(examples))
            # The next batch takes their memory.
            del batch, done, images
    arrays: dict[str, Any] = {name: np.concatenate([one[name] for one in values]) for name in values[0]}
    sums, weights = averages.take_sums()
    arrays |= {"proof": proof.sums.cpu().numpy(), "sums": sums, "weights": weights}
    arrays["examples"] = np.stack(examples)
    write_arrays(context.folder / f"parts/{item.name}.npz", arrays)
    told = {"particles": len(rows), "mean_scale": float(arrays["expected"].mean())}
    return ItemResult((stack, f"parts/{item.name}.npz"), told)


def _take_examples(
    before: "torch.Tensor", after: "torch.Tensor", count: int
) -> list[npt.NDArray[np.float32]]:
    pairs = zip(before[:count].cpu().numpy(), after[:count].cpu().numpy(), strict=True)
    return [np.stack(pair) for pair in pairs]


def _find_centres(
    angles_deg: npt.NDArray[np.float64],
    origins_angstrom: npt.NDArray[np.float64],
    maps: "Maps",
    params: SubtractParams,
) -> npt.NDArray[np.float64] | None:
    """`(n, 2)` yx in pixels: where the point that comes to the middle lies in each image; none when nothing moves."""
    import torch

    from verglas.ops.rotation import euler_to_matrices

    point = _choose_point(maps, params)
    if point is None:
        return None
    rotations = euler_to_matrices(torch.from_numpy(angles_deg)).numpy()
    places = (rotations @ point)[:, :2] - origins_angstrom
    return np.ascontiguousarray(places[:, ::-1] / maps.pixel_size_angstrom)


def _choose_point(maps: "Maps", params: SubtractParams) -> npt.NDArray[np.float64] | None:
    """Xyz in Å of the point of the reference that comes to the middle of the images."""
    if params.centre is not None:
        return np.array(params.centre)
    if not params.recentre:
        return None
    kept = np.clip(maps.whole, 0, None) * (1 - maps.remove)
    if not kept.any():
        raise UserError("nothing is kept of the map, so it has no centre; expected `centre`")
    axis = np.arange(maps.size) - maps.size // 2
    sums = [kept.sum(axis=others) @ axis for others in ((0, 1), (0, 2), (1, 2))]
    centre: npt.NDArray[np.float64] = np.array(sums) / kept.sum() * maps.pixel_size_angstrom
    return centre


def summarise(results: dict[str, ItemResult], params: SubtractParams, folder: Path) -> Summary:
    """Write the tables, hold the maps against each other, and say whether it worked."""
    from verglas.algo.subtraction.class_averages import finish_averages
    from verglas.io.arrays import read_arrays
    from verglas.io.image_particles import write_rows
    from verglas.steps import subtraction_work as work

    table = _read_table(params.particles)
    maps = work.read_maps(_map_paths(params), params.keep, params.remove)
    parts = {name: read_arrays(folder / f"parts/{name}.npz", "a part") for name in results}
    values: dict[str, npt.NDArray[Any]] = {
        name: np.concatenate([part[name] for part in parts.values()])
        for name in ("plain", "error", "expected", "agreement", "left", "left_error", "offset", "outside")
    }
    suffix = params.particles.suffix
    rows = [row for name in results for row in range(*_rows_of(name, len(table.names)))]
    _write_table(folder, table.take(rows), results, values, maps, params)
    shutil.copyfile(params.particles, folder / f"original{suffix}")
    if len(rows) < len(table.names):
        # Revert finds rows by their place in the table that was written.
        write_rows(table.take(rows), folder / f"original{suffix}")
    _write_kept(folder, maps, params)
    proof = work.add_up_proof(iter(parts.values()), maps)
    examples = np.concatenate([part["examples"] for part in parts.values()])[:_EXAMPLES]
    sums, weights = (np.sum([part[name] for part in parts.values()], axis=0) for name in ("sums", "weights"))
    averages = finish_averages(sums, weights)
    with ThreadPoolExecutor(1) as pool:
        judged = pool.submit(judge, values, proof, maps, folder)
        draw_examples(averages, maps.pixel_size_angstrom, folder / "figures/averages.png")
        draw_scales(values, folder / "set.json", maps.pixel_size_angstrom, folder / "figures/scales.png")
        draw_examples(examples, maps.pixel_size_angstrom, folder / "figures/particles.png")
        verdict = judged.result()
    draw_maps(verdict, maps, folder / "figures/maps.png")
    told = {
        "verdict": Value(verdict.sentence, "", "of the reconstructions before and after"),
        "left": Value(round(100 * verdict.left, 2), "%", "of the removed density is still there"),
        "kept": Value(round(100 * verdict.kept, 2), "%", "of the kept density is still there"),
        "particles": Value(len(rows), "", f"of {len(table.names)} subtracted"),
        "scale": Value(round(float(values["expected"].mean()), 4), "", "of the map in an image; the mean"),
        "scatter": Value(
            round(float(values["expected"].std()), 4), "", "of the scales, one standard deviation"
        ),
        "worst": Value(
            ", ".join(str(rows[one] + 1) for one in np.argsort(values["agreement"], kind="stable")[:_WORST]),
            "",
            "rows of the table whose images agree least with the map",
        ),
    }
    figures = [
        Figure(
            "figures/maps.png",
            "reference, and particles reconstructed before and after, with the removed region",
        ),
        Figure(
            "figures/averages.png",
            "averages of up to 100 particles about the most frequent views, before and after",
        ),
        Figure("figures/particles.png", "particles before and after, smoothed for the eye"),
        Figure("figures/scales.png", "how strong the map is in each particle, and by frequency"),
    ]
    warnings = list(verdict.warnings)
    if table.unused:
        warnings.append(f"the table has {', '.join(table.unused)}, which are not applied to the map")
    return Summary(figures, told, warnings, [f"particles{suffix}"])


def _rows_of(name: str, count: int) -> tuple[int, int]:
    start = (int(name.removeprefix("part_")) - 1) * PART
    return start, min(count, start + PART)


def _write_table(
    folder: Path,
    table: "ParticleTable",
    results: dict[str, ItemResult],
    values: dict[str, npt.NDArray[Any]],
    maps: "Maps",
    params: SubtractParams,
) -> None:
    from verglas.io.image_particles import write_cs_particles, write_star_particles
    from verglas.model import ImageReference

    images = [
        ImageReference(stack, row)
        for stack, one in ((folder / f"stacks/{name}.mrcs", one) for name, one in results.items())
        for row in range(one.values["particles"])
    ]
    box, centred = params.box or maps.size, params.recentre or params.centre is not None
    if params.particles.suffix == ".cs":
        write_cs_particles(folder / "particles.cs", table, images, box=box, centred=centred)
        return
    columns = {
        "vglSubtractScale": values["expected"],
        "vglSubtractScaleError": values["error"],
        "vglSubtractAgreement": values["agreement"],
        "vglSubtractBackground": values["offset"],
    }
    write_star_particles(folder / "particles.star", table, images, columns, box=box, centred=centred)


def _write_kept(folder: Path, maps: "Maps", params: SubtractParams) -> None:
    """Write the kept part of the map as the new images see it."""
    import torch

    from verglas.io.mrc import write_mrc
    from verglas.ops.fft import crop_centred, fourier_shift, pad_centred

    kept = torch.from_numpy(maps.whole * (1 - maps.remove))
    point = _choose_point(maps, params)
    box = params.box or maps.size
    if point is not None:
        reach = int(np.ceil(np.abs(point).max() / maps.pixel_size_angstrom)) + 4
        wide = pad_centred(kept, (maps.size + 2 * reach,) * 3)
        kept = fourier_shift(wide, torch.from_numpy(-point[::-1].copy() / maps.pixel_size_angstrom).float())
    larger = max(box, len(kept))
    kept = crop_centred(pad_centred(kept, (larger,) * 3), (box,) * 3)
    write_mrc(folder / "maps/kept.mrc", kept.numpy(), voxel_size_angstrom=maps.pixel_size_angstrom)


def estimate(items: list[Item], params: SubtractParams) -> Estimate:
    """From the size of the map and the number of particles, by times measured on one core."""
    from verglas.io.mrc_header import read_mrc_header

    size = read_mrc_header(next(iter(_map_paths(params).values()))).shape[-1]
    count = sum(stop - start for start, stop in (item.record for item in items))
    kept = (2 if params.float16 else 4) * (params.box or size) ** 2
    return Estimate(
        _PROCESS_BYTES + 200 * size**3 + (1 << 29),
        count * (kept + 200),
        20.0 + count * size**2 * 6e-7,
    )


SUBTRACT_STEP = Step("subtract", SubtractParams, list_items, run_item, summarise, estimate)
"""A part of a map taken out of particle images."""
