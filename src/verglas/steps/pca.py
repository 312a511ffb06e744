"""`pca`: what differs among particles, as principal components of their differences from the mean."""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import ConfigDict, Field

from verglas.errors import UserError
from verglas.files import check_exists
from verglas.model import Particles, join_particles
from verglas.steps.map_results import read_volume
from verglas.steps.particle_voxels import Places, read_voxels, write_places
from verglas.steps.series_particles import (
    BoxedTomograms,
    LossyIce,
    SeriesParticles,
    list_particle_items,
    list_series_particles,
    open_particles,
)
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    import torch

    from verglas.algo.classification.masked_band import MaskedBand
    from verglas.algo.classification.subspace import Subspace
    from verglas.ops.band import Band

AGREED = 0.5
_PIXELS_A_DETAIL = 3.0
_DRAWN = 2.0
_ROWS = 6


class PcaParams(Params):
    """Find the principal components of the differences among particles, each in its own sampling."""

    model_config = ConfigDict(allow_inf_nan=False)

    particles: Annotated[Path, Field(description="`particles.star` with poses and half sets")]
    tilt_series: Annotated[Path, Field(description="`tilt_series.star` of the aligned series")]
    tomograms: BoxedTomograms = None
    particle_radius: Annotated[float, Field(gt=0, description="of the molecule, in Å; outside is masked")]
    mask: Annotated[
        Path | None,
        Field(
            description="MRC, 0 to 1, of what may differ, its middle that of the map; the sphere when not given"
        ),
    ] = None
    lowpass: Annotated[float, Field(gt=0, description="finest detail that is compared, in Å")] = 40.0
    components: Annotated[int, Field(ge=1, le=64, description="how many are sought")] = 6
    ice_thickness: LossyIce = 0.0
    ctf: Annotated[bool, Field(description="account for the CTF at each particle's own defocus")] = True


def list_items(params: PcaParams) -> list[Item]:
    """One item a tilt series."""
    found = list_series_particles(params.tilt_series, params.particles, params.tomograms)
    _choose_size(params, next(iter(found.values())))
    if params.mask is not None:
        check_exists(params.mask, "mask")
    return list_particle_items(found)


def _choose_size(params: PcaParams, one: SeriesParticles) -> tuple[float, int]:
    """Pixel size and side of the crops: no finer than the detail needs."""
    finest = one.pixel_size_angstrom
    if params.lowpass < 2.2 * finest:
        raise UserError(
            f"`lowpass` {params.lowpass:g} Å is beyond what pixels of {finest:g} Å hold; expected at least "
            f"{2.2 * finest:.3g} Å"
        )
    pixel = finest if params.tomograms else max(finest, params.lowpass / _PIXELS_A_DETAIL)
    return pixel, max(16, 2 * int(np.ceil(2 * params.particle_radius / pixel)))


def run_item(item: Item, params: PcaParams, context: Context) -> ItemResult:
    """Bring the particles of one series into the frame of the reference."""
    import torch

    from verglas.algo.averaging.fitting import cut_weighted
    from verglas.algo.averaging.search import insert_into_band
    from verglas.algo.averaging.sums import batches
    from verglas.algo.averaging.transfer import TransferModel
    from verglas.io.arrays import write_arrays
    from verglas.ops.rotation import euler_to_matrices

    one: SeriesParticles = item.record
    pixel, box = _choose_size(params, one)
    model = TransferModel(ctf=params.ctf, ice_thickness_angstrom=params.ice_thickness)
    source = open_particles(one, pixel, box, model, context)
    band = _choose_band(params, pixel, box, source.views.images.device)
    positions = torch.from_numpy(one.particles.positions_angstrom)
    rotations = euler_to_matrices(torch.from_numpy(one.particles.angles_deg))
    data, weights = [], []
    for part in batches(len(positions), source.batch):
        cut = cut_weighted(source, positions[part], band.size)
        inserted = insert_into_band(cut, rotations[part], band, params.particle_radius / pixel + 2)
        data.append(inserted.data.cpu().numpy())
        weights.append(inserted.weights.cpu().numpy())
    path = f"voxels/{item.name}.npz"
    arrays = {"data": np.concatenate(data), "weights": np.concatenate(weights)}
    write_arrays(context.folder / path, arrays)
    return ItemResult((path,), {"particles": len(one.particles)})


def _choose_band(params: PcaParams, pixel: float, box: int, device: "torch.device | str" = "cpu") -> "Band":
    from verglas.ops.band import choose_band

    return choose_band(box, pixel, params.lowpass, device=device)


def summarise(results: dict[str, ItemResult], params: PcaParams, folder: Path) -> Summary:
    """Find the components of all particles and of each half set, place the particles, and draw both."""
    from verglas.algo.classification.subspace import fit_subspace, locate_particles, measure_agreement
    from verglas.io.relion_particles import write_particles

    found = list_series_particles(params.tilt_series, params.particles, params.tomograms)
    used = [found[name] for name in results]
    table = join_particles([one.particles for one in used])
    pixel, box = _choose_size(params, used[0])
    band = _mask_band(params, pixel, box)
    names = tuple(result.outputs[0] for result in results.values())
    files = [folder / name for name in names]
    whole = fit_subspace(read_voxels(files), band, params.components)
    halves = [
        fit_subspace(read_voxels(files, table.half_set == half), band, params.components).components
        for half in (1, 2)
    ]
    agreement = measure_agreement(whole.components, halves[0], halves[1], band).numpy()
    coordinates = locate_particles(read_voxels(files), band, whole)
    strengths = whole.amplitudes(band).numpy()
    places = Places(band, box * pixel / len(band.mask), coordinates, agreement, names)
    write_places(folder, places)
    placed = _note_places(table, places, strengths)
    write_particles(folder / "particles.star", placed, {one.series.name: one.series for one in used})
    _write_components(folder, strengths, agreement)
    figures = _write_maps(folder, places, whole)
    return _describe(params, placed, whole, places, figures)


def _mask_band(params: PcaParams, pixel: float, box: int) -> "MaskedBand":
    """Put the band and the mask together, on the coarse grid that holds them."""
    import torch

    from verglas.algo.classification.masked_band import MaskedBand
    from verglas.ops.masks import soft_sphere_mask

    band = _choose_band(params, pixel, box)
    voxel = box * pixel / band.size
    radius = params.particle_radius / voxel
    support = mask = soft_sphere_mask((band.size,) * 3, radius, max(1.5, 0.2 * radius))
    if params.mask is not None:
        mask = support * torch.from_numpy(_sample_mask(params.mask, band.size, voxel))
        if not float(mask.max()) > 0.5:
            raise UserError(
                f"mask {str(params.mask)!r} is empty within `particle_radius`; expected a part of the map"
            )
    return MaskedBand(band, mask, support)


def _sample_mask(path: Path, size: int, voxel_size_angstrom: float) -> npt.NDArray[np.float32]:
    """Read a mask at the voxels of a cube with the same middle; what lies outside it is 0."""
    from scipy.ndimage import map_coordinates

    volume, voxel = read_volume(path)
    if volume.min() < 0 or volume.max() > 1:
        raise UserError(
            f"mask {str(path)!r} has values from {volume.min():g} to {volume.max():g}; expected values from 0 to 1"
        )
    line = (np.arange(size) - size // 2) * (voxel_size_angstrom / voxel)
    places = np.meshgrid(*(line + n // 2 for n in volume.shape), indexing="ij")
    sampled: npt.NDArray[np.float32] = map_coordinates(volume, places, order=1, cval=0.0).astype(np.float32)
    return sampled


def _note_places(table: Particles, places: Places, strengths: npt.NDArray[np.float64]) -> Particles:
    """Write where each particle lies: its contrast, and its share of each component in percent of the mean map."""
    extra = table.extra if len(table.extra) else pd.DataFrame(index=range(len(table)))
    shares = 100 * places.coordinates.means.numpy() * strengths
    columns = {"vglContrast": places.coordinates.contrast.numpy()}
    columns |= {f"vglComponent{number + 1}": shares[:, number] for number in range(shares.shape[1])}
    return replace(table, extra=extra.assign(**columns))


def _write_components(
    folder: Path, strengths: npt.NDArray[np.float64], agreement: npt.NDArray[np.float64]
) -> None:
    from verglas.io.star import write_star

    columns = {
        "vglComponent": np.arange(1, len(strengths) + 1),
        "vglSpreadPercent": 100 * strengths,
        "vglAgreement": agreement,
        "vglMapName": [f"maps/component_{number + 1}.mrc" for number in range(len(strengths))],
    }
    write_star(folder / "components.star", {"components": pd.DataFrame(columns)})


def _write_maps(folder: Path, places: Places, whole: "Subspace") -> list[Figure]:
    """Write and draw the mean, each component, and the mean less and plus two standard deviations of it."""
    from verglas.figures.classification import draw_components, draw_places, draw_strengths
    from verglas.io.mrc import write_mrc

    voxel, strengths = places.voxel_size_angstrom, whole.amplitudes(places.band).numpy()
    mean, *components = places.band.to_volumes(whole.maps).numpy()
    maps = {"mean": mean, "mask": places.band.mask.numpy()}
    rows = []
    for number, component in enumerate(components, 1):
        low, high = mean - _DRAWN * component, mean + _DRAWN * component
        maps |= {
            f"component_{number}": component,
            f"component_{number}_minus": low,
            f"component_{number}_plus": high,
        }
        rows.append((f"{number}: {100 * strengths[number - 1]:.0f} %", low, high, component))
    for name, volume in maps.items():
        write_mrc(folder / f"maps/{name}.mrc", volume.astype(np.float32), voxel_size_angstrom=voxel)
    draw_strengths(strengths, places.agreement, AGREED, folder / "figures/strengths.png")
    draw_components(rows[:_ROWS], voxel, folder / "figures/components.png")
    shares = 100 * places.coordinates.means.numpy() * strengths
    draw_places(shares, range(1, len(strengths) + 1), None, folder / "figures/places.png")
    return [
        Figure(
            "figures/strengths.png",
            "how strongly particles differ in each component, and whether both half sets show it",
        ),
        Figure(
            "figures/components.png",
            "the mean map less and plus two standard deviations of each component, and the component: red is more",
        ),
        Figure(
            "figures/places.png", "where the particles lie among the components, in percent of the mean map"
        ),
    ]


def _describe(
    params: PcaParams,
    placed: Particles,
    whole: "Subspace",
    places: Places,
    figures: list[Figure],
) -> Summary:
    strengths, agreement = whole.amplitudes(places.band), places.agreement
    agreed = int((agreement >= AGREED).sum())
    contrast = float(whole.spreads[0])
    shift = places.voxel_size_angstrom * float(whole.spreads[1:4].square().mean().sqrt())
    turn = math.degrees(float(whole.spreads[4:].square().mean().sqrt()))
    warnings = []
    if not agreed:
        warnings.append(
            f"the half sets agree on no component: at {params.lowpass:g} Å these particles are not seen to differ"
        )
    values = {
        "particles": Value(len(placed), "", "in both half sets"),
        "components": Value(agreed, "", f"of {params.components}, on which the half sets agree"),
        "strongest": Value(
            round(100 * float(strengths[0]), 1), "%", "of the mean map, its spread among particles"
        ),
        "contrast": Value(round(100 * contrast, 1), "%", "by which that of the particles varies"),
        "turn": Value(
            round(turn, 1), "degrees", "by which orientations are off, about each axis; allowed for"
        ),
        "shift": Value(round(shift, 1), "Å", "by which positions are off, along each axis; allowed for"),
    }
    return Summary(figures, values, warnings, ["particles.star", "components.star"])


def estimate(items: list[Item], params: PcaParams) -> Estimate:
    """From the sizes of views and boxes, and rates measured on one core."""
    memory, disk, seconds, count = 0, 0, 0.0, 0
    for item in items:
        one: SeriesParticles = item.record
        pixel, box = _choose_size(params, one)
        views = int(np.prod(one.series.image_shape)) * int(one.series.selected.sum())
        pixels = len(one.particles) * float(one.series.selected.sum()) * box**2
        voxels = int(2.1 * (box * pixel / params.lowpass) ** 3)
        memory = max(memory, 4 * views + 60 * voxels * len(one.particles))
        disk += 12 * voxels * len(one.particles)
        seconds += pixels * 4e-7 + views / 5e7 + 1.0
        count += len(one.particles) * voxels
    rounds = 3 * 50
    return Estimate(memory + (900 << 20), disk, seconds + 5.0 + rounds * count * params.components * 1.5e-9)


PCA_STEP = Step(
    name="pca",
    params=PcaParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
