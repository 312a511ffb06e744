"""What `subtract` says of its own work: a verdict from maps before and after, and pictures."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from verglas.steps.sections import cut_sections

if TYPE_CHECKING:
    from verglas.algo.subtraction.verdict import MapSums
    from verglas.steps.subtraction_work import Maps

Array = npt.NDArray[Any]

_WORKED, _FAILED = 0.05, 0.15
_LOST = 0.05
_LEAST_SIGNIFICANCE = 5.0
_CUT_LESS = 0.6


@dataclass(frozen=True, eq=False)
class Verdict:
    """Whether it worked.

    Parameters
    ----------
    left, kept
        Shares of the removed and of the kept density that are still there.
    worked
        Whether the result may be used.
    sentence
        All of this in words.
    warnings
        What the user should do.
    before, after, reference, remove
        `(n, n, n)` maps that it was told from.
    pixel_size_angstrom
        Of these.
    """

    left: float
    kept: float
    worked: bool
    sentence: str
    warnings: tuple[str, ...]
    before: Array
    after: Array
    reference: Array
    remove: Array
    pixel_size_angstrom: float


def judge(values: dict[str, Array], proof: "MapSums", maps: "Maps", folder: Path) -> Verdict:
    """Reconstruct before and after, write both maps, and tell what is left and what is lost."""
    import torch

    from verglas.algo.subtraction.verdict import find_mask_shift, weigh_maps
    from verglas.io.mrc import write_mrc
    from verglas.ops.fft import rescale_images

    size = proof.size
    pixel = maps.pixel_size_angstrom * maps.size / size
    before, after = proof.maps(maps.size)
    reference = rescale_images(torch.from_numpy(maps.whole), (size,) * 3)
    remove = rescale_images(torch.from_numpy(maps.remove), (size,) * 3).clamp(0, 1)
    balance = weigh_maps(before, after, reference, remove)
    for name, volume in (("before", before), ("after", after)):
        write_mrc(folder / f"maps/{name}.mrc", volume.numpy(), voxel_size_angstrom=pixel)
    shift, cut = find_mask_shift(reference.double().numpy(), remove.double().numpy())
    faults = _find_faults(values, balance.left, balance.kept)
    if cut < _CUT_LESS and any(shift):
        step = ", ".join(f"{pixel * one:+.0f}" for one in reversed(shift))
        faults.append(
            f"the mask cuts through the density: moved by ({step}) Å in x, y, z it would cut {100 * cut:.0f} % of "
            "that: look whether it fits the map"
        )
    sentence, worked = _say(balance.left, balance.kept, faults)
    return Verdict(
        balance.left,
        balance.kept,
        worked,
        sentence,
        tuple(faults),
        before.numpy(),
        after.numpy(),
        reference.numpy(),
        remove.numpy(),
        pixel,
    )


def _find_faults(values: dict[str, Array], left: float, kept: float) -> list[str]:
    """Sentences on what went wrong."""
    faults = []
    weight = values["error"] ** -2
    mean = float((weight * values["plain"]).sum() / weight.sum())
    significance = abs(mean) * float(weight.sum()) ** 0.5
    if significance < _LEAST_SIGNIFICANCE:
        faults.append(
            f"the images do not follow the map: their mean scale is {mean:.3g}, {significance:.1f} standard errors "
            "from 0: look at poses, map and CTF"
        )
    elif mean < 0:
        faults.append(
            f"the images are the map with the opposite sign: their mean scale is {mean:.3g}: look at the sign of the "
            "CTF and of the images, in which matter must be bright"
        )
    negative = float((values["plain"] < -2 * values["error"]).mean())
    if mean > 0 and negative > 0.1:
        faults.append(
            f"{100 * negative:.0f} % of the images have the opposite sign of the map: look at the sign of their CTF"
        )
    if abs(left) > _WORKED:
        faults.append(f"{100 * left:.1f} % of the removed density is still there: {_explain(values, left)}")
    if abs(1 - kept) > _LOST:
        faults.append(
            f"the kept density is {100 * kept:.1f} % of what it was: the mask or the map takes away what should stay"
        )
    outside = float((values["outside"] > 0).mean())
    if outside > 0:
        faults.append(
            f"{100 * outside:.1f} % of the new images reach beyond the old ones, by up to "
            f"{100 * float(values['outside'].max()):.0f} % of their area, which is filled with the grey of the border"
        )
    return faults


def _explain(values: dict[str, Array], left: float) -> str:
    """Why density may be left."""
    weight = values["left_error"] ** -2
    mean = float((weight * values["left"]).sum() / weight.sum())
    scatter = values["expected"].std()
    slope = (
        float((weight * (values["left"] - mean) * (values["expected"] - values["expected"].mean())).sum())
        / float((weight * (values["expected"] - values["expected"].mean()) ** 2).sum())
        if scatter > 1e-6
        else 0.0
    )
    if abs(slope) > 0.3:
        return f"it follows the contrast of the particles ({slope:+.2f} for 1): look at the map and the CTF"
    if left < 0:
        return "too much was taken out: look whether the map was sharpened or masked"
    return "it is the same at all contrasts: the part moves or is not in all particles, or the poses are not its own"


def _say(left: float, kept: float, faults: list[str]) -> tuple[str, bool]:
    figures = (
        f"{100 * left:.1f} % of the removed density is left, {100 * kept:.1f} % of the kept one is there"
    )
    serious = [
        fault for fault in faults if not fault.startswith(f"{100 * left:.1f} %") and "new images" not in fault
    ]
    if serious or abs(left) > _FAILED or not np.isfinite(left):
        return f"it did not work: {figures}", False
    return (
        f"it worked in part: {figures}" if faults and abs(left) > _WORKED else f"it worked: {figures}"
    ), True


def draw_scales(values: dict[str, Array], fits: Path, pixel: float, path: Path) -> None:
    """Draw the scales and the gain of each half set."""
    from verglas.figures.subtraction import draw_scales as draw

    told = json.loads(fits.read_text(encoding="utf-8"))["sets"]
    gains = [(f"half {half}" if half != "0" else "all", np.array(one["gain"])) for half, one in told.items()]
    draw(values["plain"], values["expected"], gains, pixel, path)


def draw_maps(verdict: Verdict, maps: "Maps", path: Path) -> None:
    """Draw sections of the reference, of the removed region, and of the maps before and after."""
    from verglas.figures.subtraction import draw_sections

    columns = []
    for label, volume in (
        ("reference", verdict.reference),
        ("before", verdict.before),
        ("after", verdict.after),
    ):
        xy, xz, _ = cut_sections(volume, verdict.pixel_size_angstrom, thickness_angstrom=10.0)
        columns.append((label, xy, xz))
    xy, xz, _ = cut_sections(verdict.remove, verdict.pixel_size_angstrom, thickness_angstrom=10.0)
    draw_sections(columns, (xy, xz), verdict.pixel_size_angstrom, path, title=verdict.sentence)


def draw_examples(examples: Array, pixel: float, path: Path) -> None:
    """Draw some particles before and after."""
    from verglas.figures.subtraction import draw_pairs

    draw_pairs(examples, pixel, path)
