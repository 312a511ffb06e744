"""`subtract revert`: particles that were subtracted, with their original images, offsets and box again."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from verglas.errors import UserError
from verglas.files import atomic_path, check_exists
from verglas.steps.step import Context, Estimate, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    from verglas.model import ImageReference


class SubtractRevertParams(Params):
    """Give subtracted particles, or some of them, the rows that they had before the subtraction."""

    particles: Annotated[Path, Field(description="table of `subtract`, or a selection of its rows")]
    job: Annotated[Path, Field(description="job folder of the `subtract` that made the images")]


def list_items(params: SubtractRevertParams) -> list[Item]:
    """One item."""
    suffix = params.particles.suffix
    tables = [params.job / f"particles{suffix}", params.job / f"original{suffix}"]
    paths = [check_exists(params.particles, "particles"), *(check_exists(path, "table") for path in tables)]
    return [Item("revert", tuple(str(path) for path in paths), tuple(dict.fromkeys(paths)))]


def run_item(item: Item, params: SubtractRevertParams, context: Context) -> ItemResult:
    """Find each image in the job's table, and write the row of the original at its place."""
    from verglas.io.image_particles import read_image_particles, write_rows

    chosen, made, original = (Path(path) for path in item.record)
    rows = {(image.path.resolve(), image.section): row for row, image in enumerate(_images(made))}
    found = []
    for number, image in enumerate(_images(chosen), 1):
        row = rows.get((image.path.resolve(), image.section))
        if row is None:
            raise UserError(
                f"particle {number} of {str(chosen)!r} has the image {(image.section or 0) + 1}@{image.path}, which "
                f"is none of {str(made)!r}"
            )
        found.append(row)
    path = f"particles{chosen.suffix}"
    if found == list(range(len(rows))):
        with atomic_path(context.folder / path) as temporary:
            shutil.copyfile(original, temporary)
    else:
        write_rows(read_image_particles(original).take(found), context.folder / path)
    return ItemResult((path,), {"particles": len(found), "of": len(rows)})


def _images(path: Path) -> "tuple[ImageReference, ...]":
    from verglas.io.image_particles import read_image_particles

    return read_image_particles(path).particles.images


def summarise(results: dict[str, ItemResult], params: SubtractRevertParams, folder: Path) -> Summary:
    """Count them."""
    values = results["revert"].values
    told = {"particles": Value(values["particles"], "", f"of {values['of']} have their original rows again")}
    return Summary([], told, [], [f"particles{params.particles.suffix}"])


def estimate(items: list[Item], params: SubtractRevertParams) -> Estimate:
    """From the size of the tables."""
    size = int(np.sum([path.stat().st_size for path in items[0].inputs]))
    return Estimate((300 << 20) + 10 * size, size, 2.0 + size / 5e7)


SUBTRACT_REVERT_STEP = Step(
    "subtract revert", SubtractRevertParams, list_items, run_item, summarise, estimate
)
"""Subtracted particles with their original images."""
