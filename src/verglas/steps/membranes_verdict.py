"""Whether the membranes are gone from particles, in plain words."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_LEAST_SIGNIFICANCE = 3.0
_WORKED, _FAILED = 0.1, 0.4
_FAR = 0.9
_OFTEN = 0.2


@dataclass(frozen=True)
class Verdict:
    """Of a subtraction.

    Parameters
    ----------
    sentence
        What is to be said.
    worked
        Whether it did.
    faults
        Sentences on what is wrong, and what to look at.
    scale_error
        Typical error of a scale, as a part of the mean scale.
    """

    sentence: str
    worked: bool
    faults: tuple[str, ...]
    scale_error: float


def judge_membranes(
    scale: FloatArray, error: FloatArray, shift: FloatArray, left_out: FloatArray, left: float, bound: float
) -> Verdict:
    """Judge by the scales, by how far membranes lay from their poses, and by the mean grey across them.

    Parameters
    ----------
    scale, error, shift, left_out
        `(n,)` of particles with membranes: scales and their standard errors, moves in pixels, and the share of the
        pixels near membranes that were held for something else.
    left
        Root mean square of the mean grey across the membranes after, over that before.
    bound
        Farthest that a membrane is followed, pixels.
    """
    if not len(scale):
        return Verdict("nothing was done: no particle is of a class with membranes", False, (), 0.0)
    mean = float(np.abs(scale).mean())
    uncertain = float(np.sqrt(np.mean(error**2)) / max(mean, 1e-12))
    seen = float(np.median(np.abs(scale) / np.maximum(error, 1e-12)))
    serious, faults = [], []
    if seen < _LEAST_SIGNIFICANCE:
        serious.append(
            f"the membranes are hardly seen in the particles: a scale is {seen:.1f} of its standard errors from 0: "
            "look whether poses and classes are those of these averages"
        )
    against = float((scale * np.sign(scale.sum()) < -2 * error).mean())
    if against > _OFTEN / 2:
        serious.append(
            f"{100 * against:.0f} % of the particles have membranes of the opposite contrast: look at their poses, "
            "classes and signs"
        )
    far = float((np.abs(shift) > _FAR * bound).mean())
    if far > _OFTEN / 2:
        serious.append(
            f"in {100 * far:.0f} % of the particles the membrane lies {bound:g} pixels or more from where its pose "
            "puts it: look at the origins and their pixel size"
        )
    if abs(left) > _WORKED:
        faults.append(
            f"{100 * left:.0f} % of the mean grey across the membranes is left: the curve of the average may not be "
            "that of its particles; try finer classes"
        )
    other = float(left_out.mean())
    if other > _OFTEN:
        faults.append(
            f"{100 * other:.0f} % of the pixels near membranes were held for something else than a membrane"
        )
    worked = not serious and left <= _FAILED
    word = "it worked" if worked and not faults else "it worked in part" if worked else "it did not work"
    sentence = (
        f"{word}: {100 * left:.1f} % of the mean grey across the membranes is left, scales are known to "
        f"{100 * uncertain:.1f} %, and {100 * other:.1f} % of the pixels near membranes hold something else, which "
        "stayed"
    )
    return Verdict(sentence, worked, (*serious, *faults), uncertain)
