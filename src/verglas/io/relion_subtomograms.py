"""Tables of extracted particles: RELION 4 and 5's `particles.star` with its images, and RELION 3.1's, as M reads it.

Convention
----------
RELION 5 finds places and optics in its own `tilt_series.star`, so its table has centred coordinates and says of the
images that their CTF was multiplied in. RELION 3.1 knows boxes with a CTF volume each (`rlnCtfImage`, the half
transform with its origin at index 0) and coordinates in pixels from the tomogram's first voxel; Warp and M read the
same table, know the series by the name of its `.tomostar`, and take the specimen's centre to lie at half its extent.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from verglas.files import write_text
from verglas.io.relion_particles import tabulate_optics, write_particles
from verglas.io.relion_tilt_series import project_path
from verglas.io.star import Block, get_table, read_star, write_star
from verglas.model import Particles, TiltSeries

FloatArray = npt.NDArray[np.float64]


def write_extracted(
    path: Path,
    particles: Particles,
    series: Mapping[str, TiltSeries],
    *,
    kind: Literal["2d", "3d"],
    box: int,
    pixel_size_angstrom: float,
    tilt_series: Path,
) -> None:
    """Write RELION 5's table of extracted particles, and `optimisation_set.star` beside it.

    Parameters
    ----------
    path
        The table.
    particles
        With `rlnImageName` and what else tells of the images in `extra`.
    series
        Tilt series of each name.
    kind
        Whether the images are stacks of the views or boxes.
    box, pixel_size_angstrom
        Of the images.
    tilt_series
        RELION's table of the tilt series.
    """
    write_particles(path, particles, series)
    blocks: dict[str, Block] = dict(read_star(path))
    optics = get_table(blocks, "optics", path)
    blocks["optics"] = optics.assign(
        rlnCtfDataAreCtfPremultiplied=1,
        rlnImageDimensionality=int(kind[0]),
        rlnTomoSubtomogramBinning=pixel_size_angstrom / optics["rlnTomoTiltSeriesPixelSize"],
        rlnImagePixelSize=pixel_size_angstrom,
        rlnImageSize=box,
    )
    table = get_table(blocks, "particles", path)
    for axis in "XYZ":
        table[f"rlnOrigin{axis}Angst"] = 0.0
    general = {"rlnTomoSubTomosAre2DStacks": int(kind == "2d")}
    write_star(path, {"general": general, "optics": blocks["optics"], "particles": table})
    write_text(
        path.parent / "optimisation_set.star",
        f"\n# version 50001\n\ndata_\n\n_rlnTomoParticlesFile {project_path(path)}\n"
        f"_rlnTomoTomogramsFile {project_path(tilt_series)}\n",
    )


def write_relion3(
    path: Path,
    particles: Particles,
    series: Mapping[str, TiltSeries],
    extents_angstrom: Mapping[str, tuple[float, float, float]],
    *,
    pixel_size_angstrom: float,
    box: int | None = None,
) -> None:
    """Write the table of RELION 3.1 that Warp and M also read.

    Parameters
    ----------
    path
        The table.
    particles
        With the images' names in `extra`, when there are any.
    series
        Tilt series of each name.
    extents_angstrom
        `(z, y, x)` of the specimen of each name.
    pixel_size_angstrom
        Of the images, and of the pixels that the coordinates count.
    box
        Side of the images; none when there are no images.
    """
    names = particles.tomogram_names.tolist()
    unique = list(dict.fromkeys(names))
    optics, groups = tabulate_optics(unique, series)
    group_of = dict(zip(unique, groups.tolist(), strict=True))
    corners = {name: np.array(extents_angstrom[name][::-1]) / 2 for name in unique}
    places = particles.positions_angstrom + np.array([corners[name] for name in names]).reshape(-1, 3)
    columns: dict[str, Any] = {"rlnMicrographName": [f"{name}.tomostar" for name in names]}
    for row, axis in enumerate("XYZ"):
        columns[f"rlnCoordinate{axis}"] = places[:, row] / pixel_size_angstrom
    for row, angle in enumerate(("Rot", "Tilt", "Psi")):
        columns[f"rlnAngle{angle}"] = particles.angles_deg[:, row]
    if box is None:
        columns["rlnPixelSize"] = np.full(len(particles), pixel_size_angstrom)
    else:
        columns |= {label: particles.extra[label].array for label in ("rlnImageName", "rlnCtfImage")}
        columns |= {f"rlnOrigin{axis}Angst": np.zeros(len(particles)) for axis in "XYZ"}
        optics = optics.assign(
            rlnMicrographOriginalPixelSize=pixel_size_angstrom,
            rlnImagePixelSize=pixel_size_angstrom,
            rlnImageSize=box,
            rlnImageDimensionality=3,
            rlnCtfDataAreCtfPremultiplied=0,
        ).drop(columns="rlnTomoTiltSeriesPixelSize")
    if particles.half_set.any():
        columns["rlnRandomSubset"] = particles.half_set
    if not np.isnan(particles.score).all():
        columns["rlnAutopickFigureOfMerit"] = particles.score
    columns["rlnOpticsGroup"] = [group_of[name] for name in names]
    table = pd.DataFrame(columns)
    if box is None:
        # Warp and M look for one table, as RELION 3.0 wrote it.
        write_star(path, {"": table.drop(columns="rlnOpticsGroup")})
    else:
        write_star(path, {"optics": optics, "particles": table})
