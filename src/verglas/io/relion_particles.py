"""RELION's `particles.star`, of RELION 3.0 to 5, as the record and back.

Convention
----------
RELION's origin is subtracted: the particle lies at its coordinate minus the origin. In RELION 4 and 5 the
origin is given in the frame of the extracted subtomogram, which `rlnTomoSubtomogramRot/Tilt/Psi` turn into
the specimen's. With S and P the reference-to-specimen matrices of these angles and of `rlnAngleRot/Tilt/Psi`,

    position = coordinate - S · origin        orientation = S · P

(Zivanov et al. 2022, eLife 11, e83724). The record holds these two, and they are
written as RELION 5's coordinates and angles, without origins.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from verglas.errors import FileFormatError, UserError
from verglas.files import check_exists
from verglas.io.star import Block, get_numbers, get_table, read_star, require_columns, write_star
from verglas.model import Particles, TiltSeries, Tomogram
from verglas.ops.rotation import euler_to_matrices, matrices_to_euler

FloatArray = npt.NDArray[np.float64]

_CENTRED_LABELS = (
    "rlnCenteredCoordinateXAngst",
    "rlnCenteredCoordinateYAngst",
    "rlnCenteredCoordinateZAngst",
)
_CORNER_LABELS = ("rlnCoordinateX", "rlnCoordinateY", "rlnCoordinateZ")
_ORIGIN_LABELS = ("rlnOriginXAngst", "rlnOriginYAngst", "rlnOriginZAngst")
_PIXEL_ORIGIN_LABELS = ("rlnOriginX", "rlnOriginY", "rlnOriginZ")
_ANGLE_LABELS = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_SUBTOMOGRAM_LABELS = ("rlnTomoSubtomogramRot", "rlnTomoSubtomogramTilt", "rlnTomoSubtomogramPsi")
_SCORE_LABELS = ("rlnAutopickFigureOfMerit", "rlnLCCmax")
_HALF_SET_LABEL = "rlnRandomSubset"
# Images that were cut out at the coordinates before origins and angles were folded into them.
_EXTRACTED_LABELS = ("rlnImageName", "rlnCtfImage")


def read_particles(
    path: Path | str,
    frames: Mapping[str, Tomogram | TiltSeries] | None = None,
    pixel_size_angstrom: float | None = None,
) -> Particles:
    """Read particles of RELION 3.0 to 5.

    Labels without a field of the record go to `extra`, the table of optics to `extra.attrs["optics"]`. Names
    of extracted images are dropped when origins were folded into the positions, as they show another place.

    Parameters
    ----------
    path
        The file.
    frames
        Tomogram or tilt series of each name. Coordinates in pixels from a corner need them, centred ones do
        not. Particles in micrographs, without z, are counted from the micrograph's first pixel when there is
        no frame of their name.
    pixel_size_angstrom
        Size of the pixels in which coordinates from a corner are given; none takes it from the file: column
        `rlnPixelSize`, the optics' tilt series or original pixel size, or detector size over magnification.

    Raises
    ------
    FileFormatError
        When labels are missing or hold text.
    UserError
        When coordinates count from a corner and the frame of a name is not given.
    """
    path = check_exists(path, "particles STAR file")
    blocks = read_star(path)
    block = "particles" if "particles" in blocks else next(iter(blocks))
    table = get_table(blocks, block, path)
    name_label = "rlnTomoName" if "rlnTomoName" in table else "rlnMicrographName"
    require_columns(table, [name_label], path, block)
    # Warp names the particles' series by its `.tomostar`.
    codes, names = pd.factorize(table[name_label].astype(str).str.removesuffix(".tomostar"))
    positions, used = _read_coordinates(table, blocks, path, block, pixel_size_angstrom)
    if _CENTRED_LABELS[0] not in used:
        positions -= _read_corners(names, frames, is_flat=_CORNER_LABELS[2] not in used)[codes]
    origins, origin_labels = _read_origins(table, blocks, path, block, pixel_size_angstrom)
    angles = _read_columns(table, _ANGLE_LABELS, path, block)
    _check_angles(table, path, block)
    frame_angles = _read_columns(table, _SUBTOMOGRAM_LABELS, path, block)
    if frame_angles.any():
        turns = euler_to_matrices(torch.from_numpy(frame_angles))
        origins = (turns @ torch.from_numpy(origins)[..., None])[..., 0].numpy()
        angles = matrices_to_euler(turns @ euler_to_matrices(torch.from_numpy(angles))).numpy()
    used += [name_label, *origin_labels, *_ANGLE_LABELS, *_SUBTOMOGRAM_LABELS, _HALF_SET_LABEL]
    score_label = next((label for label in _SCORE_LABELS if label in table), None)
    used += [score_label] if score_label else []
    if origins.any() or frame_angles.any():
        used += _EXTRACTED_LABELS
    extra = table[[label for label in table.columns if label not in used]]
    extra.attrs = {}
    if isinstance(blocks.get("optics"), pd.DataFrame):
        extra.attrs["optics"] = get_table(blocks, "optics", path).to_dict("list")
    count = len(table)
    return Particles(
        tomogram_names=np.asarray(names, dtype=np.str_)[codes],
        positions_angstrom=positions - origins,
        angles_deg=angles,
        half_set=_read_half_sets(table, path, block),
        score=get_numbers(table, score_label, path, block) if score_label else np.full(count, np.nan),
        extra=extra,
    )


def write_particles(
    path: Path | str, particles: Particles, series: Mapping[str, TiltSeries] | None = None
) -> None:
    """Write particles with RELION 5's labels: centred coordinates in Å, no origins.

    Parameters
    ----------
    path
        The file.
    particles
        Positions are from the tomogram's centre.
    series
        Tilt series of each name, from which the table of optics is made; none writes the optics that the
        particles were read with, or no such table.

    Raises
    ------
    UserError
        When the tilt series of a particle is missing.
    """
    codes, names = pd.factorize(particles.tomogram_names)
    columns: dict[str, Any] = {"rlnTomoName": pd.Series(names, dtype=str).take(codes).reset_index(drop=True)}
    columns |= dict(zip(_CENTRED_LABELS, particles.positions_angstrom.T, strict=True))
    columns |= dict(zip(_ANGLE_LABELS, particles.angles_deg.T, strict=True))
    if particles.half_set.any():
        columns[_HALF_SET_LABEL] = particles.half_set
    if not np.isnan(particles.score).all():
        columns[_SCORE_LABELS[0]] = particles.score
    blocks: dict[str, Block] = {}
    if series is not None:
        blocks["optics"], groups = tabulate_optics([str(name) for name in names], series)
        columns["rlnOpticsGroup"] = groups[codes]
    elif "optics" in particles.extra.attrs:
        blocks["optics"] = pd.DataFrame(particles.extra.attrs["optics"])
    if len(particles.extra):
        columns |= {
            str(label): particles.extra[label].array
            for label in particles.extra.columns
            if label not in columns and label not in _CORNER_LABELS
        }
    blocks["particles"] = pd.DataFrame(columns, copy=False)
    write_star(path, blocks)


def _read_columns(table: pd.DataFrame, labels: tuple[str, ...], path: Path, block: str) -> FloatArray:
    values = np.zeros((len(table), len(labels)))
    for column, label in enumerate(labels):
        if label in table:
            values[:, column] = get_numbers(table, label, path, block)
    return values


def _check_angles(table: pd.DataFrame, path: Path, block: str) -> None:
    """No angle without those after it: one that was lost would be taken for 0. Picks may have psi alone."""
    found = [label in table for label in _ANGLE_LABELS]
    if found != sorted(found):
        has = ", ".join(label for label in _ANGLE_LABELS if label in table)
        lacks = ", ".join(label for label in _ANGLE_LABELS if label not in table)
        raise FileFormatError(
            f"block {block!r} of {str(path)!r} has {has} but lacks {lacks}; expected all three"
        )


def _read_half_sets(table: pd.DataFrame, path: Path, block: str) -> npt.NDArray[np.int64]:
    if _HALF_SET_LABEL not in table:
        return np.zeros(len(table), dtype=np.int64)
    return get_numbers(table, _HALF_SET_LABEL, path, block).astype(np.int64)


def _read_coordinates(
    table: pd.DataFrame, blocks: Mapping[str, Block], path: Path, block: str, pixel_size: float | None
) -> tuple[FloatArray, list[str]]:
    if all(label in table for label in _CENTRED_LABELS):
        return _read_columns(table, _CENTRED_LABELS, path, block), [*_CENTRED_LABELS, *_CORNER_LABELS]
    require_columns(table, _CORNER_LABELS[:2], path, block)
    used = [label for label in _CORNER_LABELS if label in table]
    sizes = _read_pixel_sizes(table, blocks, path, block, pixel_size)
    return _read_columns(table, _CORNER_LABELS, path, block) * sizes[:, None], used


def _read_origins(
    table: pd.DataFrame, blocks: Mapping[str, Block], path: Path, block: str, pixel_size: float | None
) -> tuple[FloatArray, list[str]]:
    if any(label in table for label in _ORIGIN_LABELS):
        return _read_columns(table, _ORIGIN_LABELS, path, block), [*_ORIGIN_LABELS, *_PIXEL_ORIGIN_LABELS]
    origins = _read_columns(table, _PIXEL_ORIGIN_LABELS, path, block)
    if origins.any():
        origins *= _read_pixel_sizes(table, blocks, path, block, pixel_size)[:, None]
    return origins, list(_PIXEL_ORIGIN_LABELS)


def _read_pixel_sizes(
    table: pd.DataFrame, blocks: Mapping[str, Block], path: Path, block: str, pixel_size: float | None
) -> FloatArray:
    if pixel_size is not None:
        return np.full(len(table), float(pixel_size))
    if "rlnPixelSize" in table:
        return get_numbers(table, "rlnPixelSize", path, block)
    if "optics" in blocks and "rlnOpticsGroup" in table:
        optics = get_table(blocks, "optics", path)
        for label in ("rlnTomoTiltSeriesPixelSize", "rlnMicrographOriginalPixelSize", "rlnImagePixelSize"):
            if label in optics:
                groups = dict(
                    zip(optics["rlnOpticsGroup"], get_numbers(optics, label, path, "optics"), strict=True)
                )
                sizes = table["rlnOpticsGroup"].map(groups).to_numpy(dtype=float)
                if np.isnan(sizes).any():
                    raise FileFormatError(f"{str(path)!r} has particles of an optics group without {label}")
                return sizes
    if "rlnDetectorPixelSize" in table and "rlnMagnification" in table:
        # Micrometres on the detector over the magnification.
        detector = get_numbers(table, "rlnDetectorPixelSize", path, block)
        return detector * 1e4 / get_numbers(table, "rlnMagnification", path, block)
    raise FileFormatError(
        f"{str(path)!r} does not say the pixel size of its coordinates; expected `pixel_size_angstrom`"
    )


def _read_corners(
    names: Any, frames: Mapping[str, Tomogram | TiltSeries] | None, *, is_flat: bool
) -> FloatArray:
    """Å from the first pixel to the frame's centre, for each name."""
    corners = np.zeros((len(names), 3))
    for row, name in enumerate(names):
        frame = (frames or {}).get(name)
        if isinstance(frame, Tomogram):
            centre = np.array([n // 2 for n in reversed(frame.shape)]) * frame.voxel_size_angstrom
            corners[row] = centre - frame.centre_angstrom
        elif frame is not None and frame.volume_shape is not None:
            corners[row] = np.array(frame.volume_shape[::-1]) / 2 * frame.pixel_size_angstrom
        elif not is_flat:
            raise UserError(
                f"particles of {name!r} are counted from a corner of the tomogram; expected its tomogram "
                "or its tilt series with a known volume"
            )
    return corners


def tabulate_optics(
    names: list[str], series: Mapping[str, TiltSeries]
) -> tuple[pd.DataFrame, npt.NDArray[np.int64]]:
    """Table of optics and the 1-based group of each name; series of equal optics share a group.

    Raises
    ------
    UserError
        When the tilt series of a name is missing.
    """
    groups: dict[tuple[Any, ...], int] = {}
    group_of_name = np.zeros(len(names), dtype=np.int64)
    for row, name in enumerate(names):
        if name not in series:
            raise UserError(f"particles of {name!r} have no tilt series; expected one of that name")
        optics = series[name].optics
        group_name = str(series[name].extra.attrs.get("rlnOpticsGroupName", "opticsGroup1"))
        group_of_name[row] = groups.setdefault((group_name, optics), len(groups) + 1)
    taken: set[str] = set()
    rows = []
    for (group_name, optics), number in groups.items():
        distinct = group_name if group_name not in taken else f"opticsGroup{number}"
        taken.add(distinct)
        rows.append(
            {
                "rlnOpticsGroup": number,
                "rlnOpticsGroupName": distinct,
                "rlnVoltage": optics.voltage_kv,
                "rlnSphericalAberration": optics.cs_mm,
                "rlnAmplitudeContrast": optics.amplitude_contrast,
                "rlnTomoTiltSeriesPixelSize": optics.pixel_size_angstrom,
            }
        )
    return pd.DataFrame(rows), group_of_name
