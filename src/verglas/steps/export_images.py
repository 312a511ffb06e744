"""The images that other programs want of particles."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from verglas.steps.series_particles import SeriesParticles

if TYPE_CHECKING:
    import torch

    from verglas.algo.averaging.sums import SeriesSource

IMAGE_FORMATS = ("relion5", "relion5-3d", "relion3", "cistem")
"""Formats of `export` that have images."""

_Written = tuple[dict[str, list[Any]], list[str], int]


def write_images(
    source: "SeriesSource", one: SeriesParticles, form: str, folder: Path, pixel_size_angstrom: float
) -> _Written:
    """Write the images of the particles of a series.

    Parameters
    ----------
    source
        Of the particles' slices.
    one
        The series and its particles.
    form
        One of `IMAGE_FORMATS`.
    folder
        The job folder.
    pixel_size_angstrom
        For the headers.

    Returns
    -------
    tuple
        Columns for the table of particles, the files below the folder, and the number of those that hold images.
    """
    import torch

    positions = torch.from_numpy(one.particles.positions_angstrom)
    if form == "cistem":
        return _write_cistem(source, one, positions, folder, pixel_size_angstrom)
    if form == "relion5":
        return _write_stacks(source, one, positions, folder, pixel_size_angstrom)
    return _write_boxes(source, one, positions, form, folder, pixel_size_angstrom)


def _write_boxes(
    source: "SeriesSource",
    one: SeriesParticles,
    positions: "torch.Tensor",
    form: str,
    folder: Path,
    pixel: float,
) -> _Written:
    """Boxes, and beside each the volume of its weights."""
    import torch

    from verglas.algo.averaging.subtomograms import make_subtomograms, measure_background
    from verglas.io.mrc import write_mrc
    from verglas.io.relion_tilt_series import project_path

    scale = measure_background(source, positions)
    columns: dict[str, list[Any]] = {"rlnImageName": [], "rlnCtfImage": []}
    files: list[str] = []
    name = one.series.name
    for number, particle in enumerate(make_subtomograms(source, positions), 1):
        if form == "relion3":
            volume, weights = (part / scale for part in particle.whiten())
        else:
            volume = particle.box() / scale**2
            weights = torch.cat([particle.weights / scale**2, particle.counts])
        paths = [f"subtomograms/{name}/{number}_{kind}.mrc" for kind in ("data", "weights")]
        for path, array in zip(paths, (volume, weights), strict=True):
            write_mrc(folder / path, array.cpu().numpy(), voxel_size_angstrom=pixel)
        for label, path in zip(columns, paths, strict=True):
            columns[label].append(project_path((folder / path).absolute()))
        files += paths
    if form == "relion5-3d":
        columns["rlnTomoParticleName"] = [f"{name}/{row + 1}" for row in range(len(positions))]
    return columns, files, len(files)


def _write_stacks(
    source: "SeriesSource", one: SeriesParticles, positions: "torch.Tensor", folder: Path, pixel: float
) -> _Written:
    """RELION 5's stacks: of each particle the views that show it, multiplied by their CTF."""
    import numpy as np

    from verglas.algo.averaging.sums import batches
    from verglas.algo.averaging.transfer import compute_transfer, find_heights
    from verglas.algo.averaging.views import cut_particles
    from verglas.io.mrc import write_mrc
    from verglas.io.relion_tilt_series import project_path
    from verglas.ops.projection import slices_to_images

    name, box = one.series.name, source.box
    columns: dict[str, list[Any]] = {"rlnImageName": [], "rlnTomoVisibleFrames": []}
    files: list[str] = []
    scale = float(source.noise.mean()) ** 0.5 / box
    # Frames are counted among all views of the table, used or not.
    used = np.flatnonzero(one.series.selected)
    for part in batches(len(positions), source.batch):
        slices, seen = cut_particles(source.views, positions[part], box)
        slices = slices * compute_transfer(
            source.views, find_heights(source.views, positions[part]), box, pixel, source.model
        )
        images = slices_to_images(slices, box) / scale
        for image, shown in zip(images, seen, strict=True):
            path = f"subtomograms/{name}/{len(files) + 1}_stack2d.mrcs"
            write_mrc(folder / path, image[shown].cpu().numpy(), voxel_size_angstrom=pixel, is_stack=True)
            frames = np.zeros(len(one.series), dtype=int)
            frames[used] = shown.cpu().numpy()
            columns["rlnImageName"].append(project_path((folder / path).absolute()))
            columns["rlnTomoVisibleFrames"].append(f"[{','.join(map(str, frames))}]")
            files.append(path)
    columns["rlnTomoParticleName"] = [f"{name}/{row + 1}" for row in range(len(positions))]
    return columns, files, len(files)


def _write_cistem(
    source: "SeriesSource", one: SeriesParticles, positions: "torch.Tensor", folder: Path, pixel: float
) -> _Written:
    """All views of all particles in one stack, dense dark as recorded, and its table."""
    import torch

    from verglas.algo.averaging.sums import batches
    from verglas.algo.averaging.transfer import find_defocus, find_heights
    from verglas.algo.averaging.views import cut_particles, tell_seen
    from verglas.io.mrc import create_mrc
    from verglas.ops.projection import slices_to_images
    from verglas.ops.rotation import euler_to_matrices, matrices_to_euler

    views, box, name = source.views, source.box, one.series.name
    rotations = euler_to_matrices(torch.from_numpy(one.particles.angles_deg))
    rows: list[torch.Tensor] = []
    stack, table = f"stacks/{name}.mrc", f"stacks/{name}.star"
    count = int(tell_seen(views, positions, box).sum())
    with create_mrc(folder / stack, (count, box, box), voxel_size_angstrom=pixel, is_stack=True) as writer:
        for part in batches(len(positions), source.batch):
            slices, seen = cut_particles(views, positions[part], box)
            writer.write(-slices_to_images(slices, box)[seen].cpu().numpy())
            angles = matrices_to_euler(views.rotations @ rotations[part][:, None])
            defocus = find_defocus(views, find_heights(views, positions[part]))
            numbers = torch.arange(part.start + 1, part.stop + 1)[:, None].expand(seen.shape)
            each = torch.arange(len(views.images)).expand(seen.shape)
            columns = [*angles.unbind(-1), *defocus, numbers, each]
            rows.append(torch.stack([column[seen.cpu()].double() for column in columns]))
    _tabulate_views(torch.cat(rows, dim=1), source, one, pixel, folder / table)
    return {}, [stack, table], 1


def _tabulate_views(
    rows: "torch.Tensor", source: "SeriesSource", one: SeriesParticles, pixel: float, path: Path
) -> None:
    """Write cisTEM's table; `rows` are rot, tilt, psi, two defoci, number of the particle from 1, and view."""
    import numpy as np

    from verglas.io.cistem import write_cistem

    rot, tilt, psi, defocus_u, defocus_v, numbers, each = rows.numpy()
    series, particle, view = source.views.series, numbers.astype(int) - 1, each.astype(int)
    exposure = series.pre_exposure_e_per_a2
    columns = {
        "PositionInStack": np.arange(1, len(view) + 1),
        "AnglePsi": psi,
        "AngleTheta": tilt,
        "AnglePhi": rot,
        "Defocus1": defocus_u,
        "Defocus2": defocus_v,
        "DefocusAngle": series.defocus_angle_deg[view],
        "PhaseShift": np.deg2rad(series.phase_shift_deg[view]),
        "PixelSize": np.full(len(view), pixel),
        "MicroscopeVoltagekV": np.full(len(view), series.optics.voltage_kv),
        "MicroscopeCsMM": np.full(len(view), series.optics.cs_mm),
        "AmplitudeContrast": np.full(len(view), series.optics.amplitude_contrast),
        "ParticleGroup": particle + 1,
        "AssignedSubset": one.particles.half_set[particle],
        "PreExposure": exposure[view],
        "TotalExposure": exposure[view] + np.nan_to_num(series.exposure_e_per_a2[view]),
    }
    write_cistem(path, columns)
