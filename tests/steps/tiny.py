"""A step small enough to test the engine with: an item is a file of numbers, its result their running sum."""

import os
import signal
import time
from pathlib import Path

import numpy as np
from pydantic import Field

from verglas.errors import UserError
from verglas.figures.style import house_style, make_figure, save_figure
from verglas.files import atomic_path, write_text
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value


class TinyParams(Params):
    """Sum numbers.

    Parameters
    ----------
    input
        Folder of text files.
    """

    input: Path = Field(description="Folder of text files with one number a line.")
    scale: float = Field(1.0, gt=0, description="Factor on every number.")
    seconds: float = Field(0.0, ge=0, description="Rest before and after writing, s.")


def list_items(params):
    return [Item(path.stem, {"name": path.stem}, (path,)) for path in params.input.glob("*.txt")]


def run_item(item: Item, params: TinyParams, context: Context) -> ItemResult:
    text = item.inputs[0].read_text()
    if text == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if text == "die once":
        if not (died := item.inputs[0].with_suffix(".died")).exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        text = "1 2"
    if text == "bug":
        raise KeyError(item.name)
    try:
        numbers = np.array(text.split(), dtype=float)
    except ValueError:
        raise UserError(f"{item.name!r} holds no numbers") from None
    time.sleep(params.seconds)
    name = f"sums/{item.name}.npy"

    def write() -> None:
        with atomic_path(context.folder / name) as temporary:
            np.save(temporary, numbers.cumsum() * params.scale)
            time.sleep(params.seconds)
            if (numbers < 0).any():
                raise UserError(f"{item.name!r} holds negative numbers")

    # Every other item leaves its file for later.
    later = write if item.name[-1] in "02468" else None
    if later is None:
        write()
    warnings = ("no numbers at all",) if not len(numbers) else ()
    values = {"sum": numbers.sum() * params.scale, "worker": os.getpid() * 0}
    return ItemResult((name,), values, warnings, later)


def summarise(results: dict[str, ItemResult], params: TinyParams, folder: Path) -> Summary:
    sums = {name: result.values["sum"] for name, result in results.items()}
    write_text(
        folder / "sums.star", "data_\n" + "".join(f"_{name} {value}\n" for name, value in sums.items())
    )
    with house_style():
        figure = make_figure(4, 2)
        figure.subplots().plot(list(sums.values()))
        save_figure(figure, folder / "figures/sums.png")
    return Summary(
        figures=[Figure("figures/sums.png", "Sum of each item.")],
        values={"total": Value(sum(sums.values()), "e", "Sum of all.")},
        tables=["sums.star"],
    )


def estimate(items, params):
    return Estimate(1 << 20, 1000 * len(items), 2 * params.seconds * len(items))


STEP = Step("tiny", TinyParams, list_items, run_item, summarise, estimate)
