"""The correlation of half maps, as tables for RELION and the EMDB, and as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from verglas.steps.step import Value

if TYPE_CHECKING:
    import torch

    from verglas.algo.averaging.halves import Curves

CURVES_CAPTION = (
    "correlation of the half maps; faint lines are its 37 cones, the dashed one the mean of the one-bit and half-bit "
    "thresholds"
)
LOCAL_CAPTION = "local resolution in the mask, over central sections of the mean of the half maps"
CURVE_FILES = ("fsc.star", "fsc.xml", "figures/fsc.pdf")


def write_curves(curves: "Curves", folder: Path, general: Mapping[str, Any] | None = None) -> None:
    """Write `fsc.star` with the labels of RELION's postprocess, cones beside, and the EMDB's `fsc.xml`.

    Parameters
    ----------
    curves
        Of the half maps.
    folder
        Where both go.
    general
        More for the block `general`.
    """
    import pandas as pd

    from verglas.io.emdb_fsc import write_fsc_xml
    from verglas.io.star import write_star

    frequency = _numbers(curves.frequency)
    with np.errstate(divide="ignore"):
        resolution = np.where(frequency > 0, 1 / np.maximum(frequency, 1e-12), 999.0)
    table = {
        "rlnSpectralIndex": np.arange(len(frequency)),
        "rlnResolution": frequency,
        "rlnAngstromResolution": resolution,
        "rlnFourierShellCorrelationCorrected": _numbers(curves.corrected),
        "rlnFourierShellCorrelationUnmaskedMaps": _numbers(curves.unmasked),
        "rlnFourierShellCorrelationMaskedMaps": _numbers(curves.masked),
        "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": _numbers(curves.randomised),
        "vglFourierShellCorrelationParticle": _numbers(curves.particle),
        "vglFigureOfMerit": _numbers(curves.figure_of_merit),
        "vglOneBit": _numbers(curves.one_bit),
        "vglHalfBit": _numbers(curves.half_bit),
    }
    cones = {f"vglCone{number + 1:02d}": _numbers(cone) for number, cone in enumerate(curves.cones)}
    first = {
        "rlnFinalResolution": _finite(curves.resolution()),
        "rlnRandomiseFrom": curves.randomised_from_angstrom,
        "vglSolventFactor": curves.solvent_factor,
    }
    blocks: dict[str, Any] = {
        "general": first | dict(general or {}),
        "fsc": pd.DataFrame(table | cones),
        "cones": _list_cones(curves),
    }
    write_star(folder / "fsc.star", blocks)
    title = f"masked and corrected by random phases beyond {curves.randomised_from_angstrom:.1f} Å"
    write_fsc_xml(folder / "fsc.xml", frequency.tolist(), _numbers(curves.corrected).tolist(), title=title)


def _list_cones(curves: "Curves") -> Any:
    """Where the axis of each cone points, and where it is cut off."""
    import pandas as pd

    from verglas.ops.fsc import cone_axes, resolution_at

    axes = cone_axes().double().numpy()
    limits = _numbers(curves.cone_limits())
    columns = {
        "vglCone": np.arange(1, len(axes) + 1),
        **{f"vglAxis{name}": axes[:, column] for column, name in enumerate("XYZ")},
        "vglCutOffAngstrom": 1 / np.maximum(limits, 1e-3),
        **{
            f"vglResolutionAt{label}": np.minimum(
                _numbers(resolution_at(curves.frequency, curves.cones, threshold)), 999.0
            )
            for label, threshold in (("0143", 0.143), ("05", 0.5))
        },
    }
    return pd.DataFrame(columns)


def draw_curves(curves: "Curves", folder: Path) -> None:
    """Draw the curves of all shells over those of the cones: `figures/fsc.png`, and `.pdf` for a paper."""
    from verglas.figures.averages import draw_half_correlation

    for ending in ("png", "pdf"):
        draw_half_correlation(
            curves.frequency.cpu().numpy(),
            [
                ("corrected", curves.corrected.cpu().numpy()),
                ("unmasked", curves.unmasked.cpu().numpy()),
                ("phases randomised", curves.randomised.cpu().numpy()),
            ],
            curves.cones.cpu().numpy(),
            [("one bit and half a bit", ((curves.one_bit + curves.half_bit) / 2).cpu().numpy())],
            folder / f"figures/fsc.{ending}",
        )


CRITERIA = {
    "resolution": "where the corrected correlation falls to 0.143",
    "resolution at 0.5": "where it falls to 0.5",
    "one bit": "where it falls below the one-bit curve",
    "half a bit": "where it falls below the half-bit curve",
}


def tell_resolution(curves: "Curves") -> dict[str, Value]:
    """Where the curve crosses each criterion; one that begins below it has no resolution."""
    found = (
        curves.resolution(),
        curves.resolution(0.5),
        _meet(curves, curves.one_bit),
        _meet(curves, curves.half_bit),
    )
    return {
        name: Value(round(value, 2) if np.isfinite(value) else "none", "Å", meaning)
        for (name, meaning), value in zip(CRITERIA.items(), found, strict=True)
    }


def map_local_resolution(
    halves: "tuple[torch.Tensor, torch.Tensor]",
    inside: "torch.Tensor",
    pixel_size_angstrom: float,
    folder: Path,
) -> tuple[str, str]:
    """Write the map of the local resolution of two half maps and its picture, and return their paths."""
    from verglas.algo.averaging.local_resolution import measure_local_resolution
    from verglas.figures.averages import draw_local_resolution
    from verglas.io.mrc import write_mrc

    resolution = measure_local_resolution(*halves, pixel_size_angstrom).float().cpu().numpy()
    names = ("maps/local_resolution.mrc", "figures/local_resolution.png")
    write_mrc(folder / names[0], resolution, voxel_size_angstrom=pixel_size_angstrom)
    mean = ((halves[0] + halves[1]) / 2).cpu().numpy()
    draw_local_resolution(resolution, mean, inside.cpu().numpy(), folder / names[1])
    return names


def _meet(curves: "Curves", threshold: "torch.Tensor") -> float:
    from verglas.ops.fsc import resolution_at

    return float(resolution_at(curves.frequency, curves.corrected - threshold, 0.0))


def _numbers(values: "torch.Tensor") -> "np.ndarray[Any, np.dtype[np.float64]]":
    found: np.ndarray[Any, np.dtype[np.float64]] = values.double().cpu().numpy()
    return found


def _finite(value: float) -> float:
    """RELION writes 999 where there is no resolution."""
    return value if np.isfinite(value) else 999.0
