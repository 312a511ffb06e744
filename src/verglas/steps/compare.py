"""`compare`: tomograms of simulated series beside the truth that they were made from."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from verglas.errors import UserError
from verglas.files import check_exists
from verglas.model import TiltSeries, Tomogram
from verglas.steps.sections import SLAB_ANGSTROM
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    import torch

    from verglas.io.mrc import MrcHeader


class CompareParams(Params):
    """Compare tomograms of simulated tilt series with the truth."""

    tomograms: Annotated[Path, Field(description="`tomograms.star`")]
    simulation: Annotated[Path, Field(description="job folder of `simulate`")]


@dataclass(frozen=True)
class _Pair:
    """A tomogram, the volume it should show, and the geometries: used and true."""

    tomogram: Tomogram
    truth: Path
    used: TiltSeries
    true: TiltSeries


def list_items(params: CompareParams) -> list[Item]:
    """One item a tomogram."""
    from verglas.io.relion_tilt_series import read_tilt_series
    from verglas.io.relion_tomograms import read_tomograms

    used = read_tilt_series(params.tomograms)
    true = read_tilt_series(params.simulation / "truth/tilt_series.star")
    items = []
    for tomogram in read_tomograms(params.tomograms):
        if tomogram.name not in true:
            raise UserError(
                f"tomogram {tomogram.name!r} has no truth in {str(params.simulation)!r}; expected one of "
                f"{', '.join(true)}"
            )
        volume = check_exists(params.simulation / f"truth/volumes/{tomogram.name}.mrc", "true volume")
        specimen = check_exists(params.simulation / f"truth/specimens/{tomogram.name}.json", "true specimen")
        pair = _Pair(tomogram, volume, used[tomogram.name], true[tomogram.name])
        items.append(Item(tomogram.name, pair, (tomogram.path, volume, specimen)))
    return items


def run_item(item: Item, params: CompareParams, context: Context) -> ItemResult:
    """Correlate one tomogram with its truth within what the views measured, and draw both."""
    import torch

    from verglas.io.mrc import read_mrc, read_mrc_header
    from verglas.ops.fsc import fourier_shell_correlation
    from verglas.ops.masks import edge_taper
    from verglas.runtime import choose_device

    pair: _Pair = item.record
    _check_same_grid(pair.tomogram, read_mrc_header(pair.truth), pair.truth)
    device = choose_device(context.device)
    voxel = pair.tomogram.voxel_size_angstrom
    tomogram = torch.from_numpy(read_mrc(pair.tomogram.path)).to(device)
    # The truth is the potential; in images and tomograms matter is dark.
    truth = -torch.from_numpy(read_mrc(pair.truth)).to(device)
    shape = pair.tomogram.shape
    window = edge_taper(shape, min(12, min(shape) // 2), device)
    about = json.loads(item.inputs[2].read_text(encoding="utf-8"))
    for bead in about["beads"]:
        _leave_out(window, bead["centre_angstrom"], bead["radius_angstrom"] + 60.0, voxel)
    measured = measured_region(shape, pair.true, device)
    # A tomogram has no mean of its own, and where a bead is taken out nothing shall stay.
    found, wanted = ((volume - volume.mean()) * window for volume in (tomogram, truth))
    frequency, fsc = fourier_shell_correlation(found, wanted, voxel)
    _, fsc_within = fourier_shell_correlation(_keep(found, measured), _keep(wanted, measured), voxel)
    resolution = find_resolution(frequency, fsc_within)
    curves = [("what the views measured", fsc_within), ("all of Fourier space", fsc)]
    paths = {kind: f"figures/{item.name}_{kind}.png" for kind in _CAPTIONS}
    _draw(paths, [truth, _keep(truth, measured), tomogram], frequency, curves, voxel, context.folder)
    values = {
        "resolution_angstrom": resolution,
        "largest_correlation": float(fsc_within[1:].max()),
        "true_geometry": _has_true_geometry(pair),
    }
    return ItemResult(tuple(paths.values()), values)


def summarise(results: dict[str, ItemResult], params: CompareParams, folder: Path) -> Summary:
    """Gather the figures, and say how the tomograms were aligned."""
    figures = [
        Figure(f"figures/{name}_{kind}.png", f"{name}: {caption}")
        for name in results
        for kind, caption in _CAPTIONS.items()
    ]
    found = [value for r in results.values() if (value := r.values["resolution_angstrom"]) is not None]
    best = [result.values["largest_correlation"] for result in results.values()]
    values = {
        "resolution": Value(
            round(float(np.median(found)), 1) if found else "none",
            "Å" if found else "",
            "where the correlation with the truth falls below 0.5, which is what 0.143 is between two halves; "
            "the median of all tomograms",
        ),
        "correlation": Value(
            round(float(np.median(best)), 2), "", "with the truth in the best shell; the median"
        ),
    }
    warnings = []
    if all(result.values["true_geometry"] for result in results.values()):
        warnings = [
            "The true geometry of the simulation was given to the reconstruction, so this judges the "
            "reconstruction alone."
        ]
    return Summary(figures, values, warnings)


_CAPTIONS = {
    "sections": f"central sections {SLAB_ANGSTROM:.0f} Å thick across the beam (above) and along it (below), "
    "smoothed to 60 Å; matter is dark. The middle is the best that the range of tilts allows: what no view "
    "measured is missing, so matter is drawn out along the beam",
    "fsc": "Fourier shell correlation of the tomogram with the truth, without gold and the borders; a vesicle makes "
    "it ripple, by one over its diameter",
}


def estimate(items: list[Item], params: CompareParams) -> Estimate:
    """From the number of voxels, and rates measured on one core."""
    sizes = [math.prod(item.record.tomogram.shape) for item in items]
    return Estimate((350 << 20) + 40 * max(sizes, default=0), len(items) << 20, sum(sizes) / 3e6)


def measured_region(
    shape: tuple[int, int, int], series: TiltSeries, device: "torch.device | None" = None
) -> "torch.Tensor":
    """`(z, y, x // 2 + 1)` mask of a half transform: 1 between the outermost views, 0 in the missing wedge.

    The view at tilt θ measures the plane whose normal is the beam, which in the frame of a specimen that lies
    level is (-sin θ, 0, cos θ); on it kz = kx tan θ. A tilt about x turns the frame first.
    """
    import torch

    z, y, x = shape
    kx = torch.fft.rfftfreq(x, device=device)
    ky = torch.fft.fftfreq(y, device=device)[:, None]
    kz = torch.fft.fftfreq(z, device=device)[:, None, None]
    lean = math.radians(float(series.x_tilt_deg.mean()))
    height = kz * math.cos(lean) + ky * math.sin(lean)
    tilt = torch.rad2deg(torch.atan2(height, kx.expand(1, y, -1)))
    # The column kx = 0 holds both ends of each direction.
    tilt = torch.where((kx == 0) & (height == 0), torch.zeros_like(tilt), tilt)
    used = np.asarray(series.y_tilt_deg)[series.selected]
    return ((tilt >= float(used.min())) & (tilt <= float(used.max()))).float()


def find_resolution(frequency: "torch.Tensor", fsc: "torch.Tensor") -> float | None:
    """Where a curve falls below 0.5 for the first time after its peak, Å; none when it never rises to that.

    Phase contrast leaves the lowest frequencies weak, so the beginning of the curve does not count.
    """
    from verglas.ops.fsc import resolution_at

    peak = int(fsc[1:].argmax())
    resolution = float(resolution_at(frequency[peak:], fsc[peak:], 0.5))
    return resolution if math.isfinite(resolution) else None


def _keep(volume: "torch.Tensor", region: "torch.Tensor") -> "torch.Tensor":
    import torch

    result: torch.Tensor = torch.fft.irfftn(torch.fft.rfftn(volume) * region, s=tuple(volume.shape))
    return result


def _leave_out(window: "torch.Tensor", centre_angstrom: list[float], radius: float, voxel: float) -> None:
    """Take a ball with a soft edge of 60 Å out of a window, in place."""
    from verglas.ops.masks import soft_sphere_mask

    edge = 60.0 / voxel
    reach = math.ceil(radius / voxel + edge) + 1
    places = [
        value / voxel + n // 2 for value, n in zip(reversed(centre_angstrom), window.shape, strict=True)
    ]
    starts = [max(0, round(place) - reach) for place in places]
    stops = [min(n, round(place) + reach + 1) for place, n in zip(places, window.shape, strict=True)]
    if any(stop <= start for start, stop in zip(starts, stops, strict=True)):
        return
    box = tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))
    shape = tuple(stop - start for start, stop in zip(starts, stops, strict=True))
    centre = [place - start for place, start in zip(places, starts, strict=True)]
    window[box] *= 1 - soft_sphere_mask(shape, radius / voxel, edge, centre, window.device)


def _check_same_grid(tomogram: Tomogram, header: "MrcHeader", path: Path) -> None:
    shape, voxel = header.shape, header.pixel_size_angstrom
    same_size = voxel is not None and abs(voxel / tomogram.voxel_size_angstrom - 1) < 1e-3
    if shape != tomogram.shape or not same_size or any(tomogram.centre_angstrom):
        raise UserError(
            f"tomogram {tomogram.name!r} has {tomogram.shape} voxels of {tomogram.voxel_size_angstrom:g} Å about "
            f"{tomogram.centre_angstrom}; expected those of {str(path)!r}: {shape} of {voxel} Å"
        )


def _has_true_geometry(pair: _Pair) -> bool:
    used, true = pair.used.geometry, pair.true.geometry
    return len(pair.used) == len(pair.true) and all(
        np.allclose(used[name], true[name], atol=1e-3) for name in used
    )


def _draw(
    paths: dict[str, str],
    volumes: list["torch.Tensor"],
    frequency: "torch.Tensor",
    curves: list[tuple[str, "torch.Tensor"]],
    voxel: float,
    folder: Path,
) -> None:
    from verglas.figures.comparison import draw_correlations, draw_side_by_side
    from verglas.steps.sections import cut_sections

    labels = ("truth", "truth, as far as measured", "tomogram")
    columns = []
    for label, volume in zip(labels, volumes, strict=True):
        xy, xz, _ = cut_sections(volume.cpu().numpy(), voxel)
        columns.append((label, xy, xz))
    draw_side_by_side(columns, voxel, folder / paths["sections"])
    draw_correlations(
        frequency.cpu().numpy(),
        [(label, curve.cpu().numpy()) for label, curve in curves],
        folder / paths["fsc"],
    )


COMPARE_STEP = Step(
    name="compare",
    params=CompareParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
