"""What `motion` tells of a movie: figures, figures of merit, and RELION's table of micrographs."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from verglas.model import MotionModel
from verglas.steps.step import ItemResult

if TYPE_CHECKING:
    from verglas.algo.motion.estimate import Estimated
    from verglas.steps.motion import MotionParams

FloatArray = npt.NDArray[np.float32]

EARLY_E_PER_A2 = 4.0
"""Exposure that parts early from late motion in RELION's table, as its default does."""

CAPTIONS = {
    "trajectories": "ways of some places of the specimen, drawn larger, over the corrected image; neighbours should "
    "move alike",
    "drift": "how far the middle moved from frame to frame and the rest against it, and the way of the middle",
    "spectra": "spectrum of the sum of frames before and after; what was blurred should rise; the grey line is where "
    "the frames stop telling of the motion",
}

_SPECTRUM = 1024


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Rotational average of the power of an image.

    Parameters
    ----------
    frequency
        `(k,)` 1/Å.
    power
        `(k,)`.
    pixel_size_angstrom
        Of the image.
    """

    frequency: npt.NDArray[np.float64]
    power: npt.NDArray[np.float64]
    pixel_size_angstrom: float


@dataclass(frozen=True, eq=False)
class Look:
    """What is shown of an average.

    Parameters
    ----------
    small
        `(y, x)` the image, shrunk.
    pixel_size_angstrom
        Of `small`.
    side_angstrom
        Of the image, the shorter one.
    spectrum
        Of the image.
    """

    small: FloatArray
    pixel_size_angstrom: float
    side_angstrom: float
    spectrum: Spectrum


def look_at(average: FloatArray, pixel: float) -> Look:
    """Gather what is shown of an average, so that the image itself need not be kept."""
    from verglas.steps.series_results import shrink

    small, small_pixel = shrink(average, pixel)
    return Look(small, small_pixel, min(average.shape) * pixel, measure_spectrum(average, pixel))


def draw_motion(
    name: str, average: Look, before: Spectrum, found: "Estimated", model: MotionModel, folder: Path
) -> None:
    """Draw one movie; `before` is the spectrum of the sum of the frames as they lie."""
    from verglas.algo.motion.field import shifts_on_axes
    from verglas.figures.motion import draw_drift, draw_spectra, draw_trajectories

    paths = {kind: f"figures/{name}_{kind}.png" for kind in CAPTIONS}
    line = (np.arange(5) + 0.5) / 5
    ways = shifts_on_axes(model, None, line, line)
    longest = float(np.ptp(ways, axis=0).max())
    magnification = max(1.0, float(np.floor(0.16 * average.side_angstrom / max(longest, 0.05))))
    places = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    draw_trajectories(
        average.small,
        average.pixel_size_angstrom,
        places,
        ways.reshape(len(model), -1, 2),
        folder / paths["trajectories"],
        magnification=magnification,
    )
    middle = shifts_on_axes(model, None, np.array([0.5]), np.array([0.5]))[:, 0, 0]
    away = np.sqrt(((ways - middle[:, None, None]) ** 2).sum(-1).mean((1, 2)))
    draw_drift(middle, away, model.first_frame + 1, folder / paths["drift"])
    after = average.spectrum
    # Binned images have the power of the frames over the area of their pixels.
    area = (before.pixel_size_angstrom / after.pixel_size_angstrom) ** 2
    before_power = np.interp(after.frequency, before.frequency, before.power) * area
    limit = found.information_limit_per_pixel / after.pixel_size_angstrom
    draw_spectra(after.frequency, before_power, after.power, limit, folder / paths["spectra"])


def measure_spectrum(image: FloatArray, pixel: float) -> Spectrum:
    """Rotational average of the power of the middle of an image."""
    import torch

    from verglas.ops.fft import crop_centred
    from verglas.ops.statistics import power_spectrum

    size = min(_SPECTRUM, *image.shape)
    middle = crop_centred(torch.from_numpy(image), (size, size))
    frequency, power = power_spectrum(middle - middle.mean(), pixel)
    return Spectrum(frequency.double().numpy(), power.double().numpy(), pixel)


def measure_motion(model: MotionModel, exposure: float | None, pre_exposure: float) -> dict[str, Any]:
    """Figures of one movie: lengths of the way of the middle, and how far the rest goes its own way."""
    from verglas.algo.motion.field import shifts_on_axes

    line = (np.arange(9) + 0.5) / 9
    shifts = shifts_on_axes(model, None, line, line)
    middle = shifts[:, 4, 4]
    steps = np.hypot(*np.diff(middle, axis=0).T)
    early = len(steps)
    if exposure is not None:
        early = int(np.clip(round((EARLY_E_PER_A2 - pre_exposure) / exposure), 0, len(steps)))
    away = np.sqrt(((shifts[-1] - middle[-1]) ** 2).sum(-1).mean())
    return {
        "drift_angstrom": float(steps.sum()),
        "early_angstrom": float(steps[:early].sum()),
        "late_angstrom": float(steps[early:].sum()),
        "local_angstrom": float(away),
    }


def write_micrographs_table(results: dict[str, ItemResult], params: "MotionParams", folder: Path) -> None:
    """Write `micrographs.star` as RELION's motion correction does: the dose-weighted image is the micrograph."""
    from verglas.io.relion_tilt_series import project_path
    from verglas.io.star import write_star

    rows: list[dict[str, Any]] = []
    groups: dict[tuple[float, float, float], int] = {}
    for name, result in results.items():
        values = result.values
        optics = (
            round(values["pixel_size_angstrom"], 6),
            round(values["original_pixel_size_angstrom"], 6),
            values["voltage_kv"],
        )
        group = groups.setdefault(optics, len(groups) + 1)
        best = "averages" if params.exposure is None else "dose_weighted"

        def locate(kind: str, suffix: str, name: str = name) -> str:
            return project_path((folder / kind / f"{name}{suffix}").absolute())

        row = {"rlnMicrographName": locate(best, ".mrc"), "rlnMicrographMetadata": locate("motion", ".star")}
        if params.exposure is not None:
            row["rlnMicrographNameNoDW"] = locate("averages", ".mrc")
        if params.odd_even:
            row |= {
                "rlnMicrographNameEven": locate("even", ".mrc"),
                "rlnMicrographNameOdd": locate("odd", ".mrc"),
            }
        rows.append(
            {
                **row,
                "rlnOpticsGroup": group,
                "rlnAccumMotionTotal": values["drift_angstrom"],
                "rlnAccumMotionEarly": values["early_angstrom"],
                "rlnAccumMotionLate": values["late_angstrom"],
            }
        )
    optics_table = [
        {
            "rlnOpticsGroupName": f"opticsGroup{group}",
            "rlnOpticsGroup": group,
            "rlnMicrographPixelSize": pixel,
            "rlnMicrographOriginalPixelSize": original,
            "rlnVoltage": voltage,
            "rlnSphericalAberration": params.cs,
            "rlnAmplitudeContrast": params.amplitude_contrast,
        }
        for (pixel, original, voltage), group in groups.items()
    ]
    write_star(
        folder / "micrographs.star", {"optics": pd.DataFrame(optics_table), "micrographs": pd.DataFrame(rows)}
    )
