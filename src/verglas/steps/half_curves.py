"""The correlation of half maps, as a table and as a picture."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from verglas.algo.averaging.halves import Curves

CURVES_CAPTION = (
    "correlation of the half maps; faint lines are its 37 cones, the dashed one the mean of the one-bit and half-bit "
    "thresholds"
)


def write_curves(curves: "Curves", path: Path) -> None:
    """Write the curves with the labels of RELION's postprocess, the cones beside them."""
    import pandas as pd

    from verglas.io.star import write_star

    frequency = curves.frequency.double().cpu().numpy()
    with np.errstate(divide="ignore"):
        resolution = np.where(frequency > 0, 1 / np.maximum(frequency, 1e-12), 999.0)
    table = {
        "rlnSpectralIndex": np.arange(len(frequency)),
        "rlnResolution": frequency,
        "rlnAngstromResolution": resolution,
        "rlnFourierShellCorrelationCorrected": curves.corrected.double().cpu().numpy(),
        "rlnFourierShellCorrelationUnmaskedMaps": curves.unmasked.double().cpu().numpy(),
        "rlnFourierShellCorrelationMaskedMaps": curves.masked.double().cpu().numpy(),
        "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": curves.randomised.double()
        .cpu()
        .numpy(),
        "vglOneBit": curves.one_bit.double().cpu().numpy(),
        "vglHalfBit": curves.half_bit.double().cpu().numpy(),
    }
    cones = {
        f"vglCone{number + 1:02d}": cone.double().cpu().numpy() for number, cone in enumerate(curves.cones)
    }
    write_star(path, {"fsc": pd.DataFrame(table | cones)})


def draw_curves(curves: "Curves", path: Path) -> None:
    """Draw the curves of all shells over those of the cones."""
    from verglas.figures.averages import draw_half_correlation

    draw_half_correlation(
        curves.frequency.cpu().numpy(),
        [
            ("corrected", curves.corrected.cpu().numpy()),
            ("unmasked", curves.unmasked.cpu().numpy()),
            ("phases randomised", curves.randomised.cpu().numpy()),
        ],
        curves.cones.cpu().numpy(),
        [("one bit and half a bit", ((curves.one_bit + curves.half_bit) / 2).cpu().numpy())],
        path,
    )
