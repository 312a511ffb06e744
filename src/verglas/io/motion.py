"""The motion of a movie: as JSON, and as the per-movie STAR file that RELION's own motion correction writes."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from verglas.errors import FileFormatError, UserError
from verglas.files import check_exists, write_text
from verglas.io.relion_tilt_series import project_path
from verglas.io.star import write_star
from verglas.model import MotionModel

FloatArray = npt.NDArray[np.float64]


def write_motion(path: Path | str, model: MotionModel) -> None:
    """Write a motion as JSON."""
    record = {
        "first_frame": model.first_frame,
        # A thousandth of an Å is far below what anybody measures.
        "trajectory_angstrom": np.round(model.trajectory_angstrom, 3).tolist(),
        "grid_angstrom": np.round(model.grid_angstrom, 3).tolist(),
    }
    write_text(path, json.dumps(record) + "\n")


def read_motion(path: Path | str) -> MotionModel:
    """Read what :func:`write_motion` wrote.

    Raises
    ------
    MissingFileError, FileFormatError
        When the file is missing or holds something else.
    """
    path = check_exists(path, "motion of a movie")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return MotionModel(
            np.asarray(record["trajectory_angstrom"], dtype=float),
            np.asarray(record["grid_angstrom"], dtype=float),
            int(record["first_frame"]),
        )
    except (ValueError, TypeError, KeyError, UserError) as error:
        raise FileFormatError(f"motion {str(path)!r} cannot be read: {error}") from error


@dataclass(frozen=True)
class MovieFacts:
    """What RELION's file says of a movie besides its motion.

    Parameters
    ----------
    movie
        The file.
    shape
        `(n, y, x)` of all its frames.
    pixel_size_angstrom
        Of the frames, Å.
    binning
        Pixels of the frames along the side of one of the average.
    voltage_kv
        kV.
    gain
        Reference as RELION is to apply it, when there is one.
    exposure_e_per_a2, pre_exposure_e_per_a2
        Of one frame, and before the first; none when unknown.
    eer_upsampling, eer_grouping
        How an EER movie was read.
    """

    movie: Path
    shape: tuple[int, int, int]
    pixel_size_angstrom: float
    binning: float
    voltage_kv: float
    gain: Path | None = None
    exposure_e_per_a2: float | None = None
    pre_exposure_e_per_a2: float = 0.0
    eer_upsampling: int | None = None
    eer_grouping: int | None = None


def write_relion_motion(
    path: Path | str,
    facts: MovieFacts,
    model: MotionModel,
    coefficients_angstrom: FloatArray | None,
    defects: npt.NDArray[np.int64],
) -> None:
    """Write the per-movie STAR file of RELION 3.1 and later.

    Its shifts are those that bring the frames back, against the displacements here.

    Parameters
    ----------
    path
        The STAR file.
    facts
        Of the movie.
    model
        Whose trajectory is written, in pixels of the frames.
    coefficients_angstrom
        `(2, 18)` of RELION's polynomial for the displacements, x and y; none when they are the same all over
        the image.
    defects
        `(m, 2)` xy of bad pixels.
    """
    pixel = facts.pixel_size_angstrom
    count, height, width = facts.shape
    general: dict[str, str | int | float] = {
        "rlnImageSizeX": width,
        "rlnImageSizeY": height,
        "rlnImageSizeZ": count,
        "rlnMicrographMovieName": project_path(facts.movie),
        "rlnMicrographBinning": facts.binning,
        "rlnMicrographOriginalPixelSize": pixel,
        "rlnVoltage": facts.voltage_kv,
        "rlnMicrographStartFrame": model.first_frame + 1,
        "rlnMotionModelVersion": 0 if coefficients_angstrom is None else 1,
    }
    if facts.gain is not None:
        general["rlnMicrographGainName"] = project_path(facts.gain)
    if facts.exposure_e_per_a2 is not None:
        general["rlnMicrographDoseRate"] = facts.exposure_e_per_a2
        general["rlnMicrographPreExposure"] = facts.pre_exposure_e_per_a2
    if facts.eer_upsampling is not None and facts.eer_grouping is not None:
        general["rlnEERUpsampling"] = facts.eer_upsampling
        general["rlnEERGrouping"] = facts.eer_grouping
    # Adding 0 takes the sign off a zero.
    trajectory = 0.0 - model.trajectory_angstrom / pixel
    blocks: dict[str, pd.DataFrame | dict[str, str | int | float]] = {
        "general": general,
        "global_shift": pd.DataFrame(
            {
                "rlnMicrographFrameNumber": model.first_frame + 1 + np.arange(len(model)),
                "rlnMicrographShiftX": trajectory[:, 1],
                "rlnMicrographShiftY": trajectory[:, 0],
            }
        ),
    }
    if coefficients_angstrom is not None:
        blocks["local_motion_model"] = pd.DataFrame(
            {
                "rlnMotionModelCoeffsIdx": np.arange(36),
                "rlnMotionModelCoeff": (0.0 - coefficients_angstrom / pixel).ravel(),
            }
        )
    if len(defects):
        blocks["hot_pixels"] = pd.DataFrame(
            {"rlnCoordinateX": defects[:, 0].astype(float), "rlnCoordinateY": defects[:, 1].astype(float)}
        )
    write_star(path, blocks)
