"""Images in `ctf`: micrographs, tilt images and movies, each by itself."""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from verglas.errors import UserError
from verglas.model import Optics
from verglas.steps.ctf_series import FINEST_ANGSTROM
from verglas.steps.series_results import PROCESS_BYTES, choose_pixel_size, gather_warnings
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Summary, Value

if TYPE_CHECKING:
    import torch

    from verglas.algo.ctf.micrograph import ImageDefocus
    from verglas.algo.ctf.profile import Profile
    from verglas.algo.ctf.quality import ImageQuality, Verdict
    from verglas.algo.ctf.spectra import CellSpectra
    from verglas.algo.ctf.tiles import Band
    from verglas.io.movie import Movie
    from verglas.steps.ctf import CtfParams

FloatArray = npt.NDArray[np.floating]

SHOWN_ANGSTROM = 3.5
"""Resolution to which spectra are measured, to tell how far the rings go; that of ice's strongest rings is below."""

LEAST_CONFIDENCE = 0.5
"""Fits below this are doubtful."""

CAPTIONS = {
    "fit": "on the disc the measured rings above and the model below, which must meet; on the left the average "
    "spectrum brought to one defocus, its rings with the model, and how well both agree",
    "surface": "defocus over the image, and the search: one peak should stand out",
}


@dataclass(frozen=True)
class ImageSource:
    """One image.

    Parameters
    ----------
    path
        The micrograph or movie as tables name it.
    measured
        The file whose spectrum is taken: without dose weighting, or the aligned frames.
    pixel_size_angstrom, voltage_kv, cs_mm, amplitude_contrast
        What a table says.
    """

    path: Path
    measured: Path
    pixel_size_angstrom: float | None = None
    voltage_kv: float | None = None
    cs_mm: float | None = None
    amplitude_contrast: float | None = None


def find_images(params: "CtfParams") -> dict[str, ImageSource]:
    """Find the images that the inputs name, by the name that their results get.

    Raises
    ------
    UserError
        When two images have one name.
    """
    from verglas.io.relion_micrographs import is_micrographs_star, list_micrographs
    from verglas.steps.movie_items import find_movies

    sources: dict[str, ImageSource] = {}
    for path in params.inputs:
        if path.suffix == ".star" and is_micrographs_star(path):
            found: dict[str, ImageSource] = {}
            for one in list_micrographs(path):
                measured = one.plain or one.path
                if params.spectra == "frames":
                    measured = path.parent / "aligned" / f"{one.path.stem}.mrcs"
                source = ImageSource(
                    one.path,
                    measured,
                    one.pixel_size_angstrom,
                    one.voltage_kv,
                    one.cs_mm,
                    one.amplitude_contrast,
                )
                _add(found, one.path.stem, source)
        else:
            found = {
                name: ImageSource(one.path, one.path, one.pixel_size_angstrom, one.voltage_kv)
                for name, one in find_movies([path], None).items()
            }
        for name, source in found.items():
            _add(sources, name, source)
    return sources


def _add(sources: dict[str, ImageSource], name: str, source: ImageSource) -> None:
    if name in sources:
        raise UserError(
            f"images {str(sources[name].path)!r} and {str(source.path)!r} have one name; expected different ones"
        )
    sources[name] = source


def list_images(params: "CtfParams") -> list[Item]:
    """One item an image. What is wrong with one is its item's error, and does not stop the others."""
    nodes = _parse_grid(params.grid)
    if nodes[2] > 1 and params.spectra == "average":
        raise UserError(
            f"a `grid` of {params.grid} varies in time; expected `spectra` frames, or one node in time"
        )
    return [
        Item(name, source, (source.measured,) if source.measured.is_file() else ())
        for name, source in find_images(params).items()
    ]


def run_image(item: Item, params: "CtfParams", context: Context) -> ItemResult:
    """Fit one image, write what was found, and draw it."""
    from verglas.algo.ctf.micrograph import ImageSearch
    from verglas.algo.ctf.quality import fit_and_judge
    from verglas.algo.ctf.tiles import Band
    from verglas.runtime import choose_device, set_threads

    set_threads(context.threads)
    source: ImageSource = item.record
    movie = _open_movie(source, params)
    pixel, warnings = choose_pixel_size(
        params.pixel_size,
        movie.pixel_size_angstrom,
        source.pixel_size_angstrom,
        f"image {str(source.path)!r}",
    )
    optics = Optics(
        pixel,
        source.voltage_kv or params.voltage,
        params.cs if source.cs_mm is None else source.cs_mm,
        params.amplitude_contrast if source.amplitude_contrast is None else source.amplitude_contrast,
    )
    coarsest = 2.2 * pixel
    fitted = params.highest_resolution or max(FINEST_ANGSTROM, coarsest)
    search = ImageSearch(
        1e4 * params.lowest_defocus,
        1e4 * params.highest_defocus,
        _parse_grid(params.grid),
        params.find_phase_shift,
        params.phase_shift,
    )
    with _naming(source, pixel):
        band = Band(params.lowest_resolution, min(fitted, max(SHOWN_ANGSTROM, coarsest)), params.tile)
        cells, image = _measure(item.name, source, params, pixel, band, choose_device(context.device))
        found, quality, verdict = fit_and_judge(cells, optics, search, fitted)
    u, v, angle = found.principal
    thickness, thickness_error = quality.tell_thickness(found)
    outputs = _write(item.name, cells, optics, found, quality, context.folder)
    figures = _draw(item.name, image, pixel, cells, found, quality, context.folder)
    values = {
        "defocus_u_angstrom": u,
        "defocus_v_angstrom": v,
        "defocus_angle_deg": angle,
        "defocus_angstrom": (u + v) / 2,
        "defocus_error_angstrom": found.error_angstrom,
        "astigmatism_angstrom": u - v,
        "phase_shift_deg": found.phase_shift_deg,
        "fit_resolution_angstrom": quality.resolution_angstrom,
        "merit": quality.merit,
        "confidence": verdict.confidence,
        "significance": found.significance,
        "tilt_deg": found.tilt_deg,
        "tilt_error_deg": found.tilt_error_deg,
        "tilt_axis_deg": found.tilt_axis_deg,
        "thickness_angstrom": thickness,
        "thickness_error_angstrom": thickness_error,
        "ice_ring": quality.ice_ring,
        "anisotropy": quality.anisotropy,
        "pixel_size_angstrom": pixel,
        "voltage_kv": optics.voltage_kv,
        "cs_mm": optics.cs_mm,
        "amplitude_contrast": optics.amplitude_contrast,
    }
    return ItemResult((*outputs, *figures), values, (*warnings, *_tell(verdict)))


def summarise_images(results: dict[str, ItemResult], params: "CtfParams", folder: Path) -> Summary:
    """Write `micrographs_ctf.star` and gather the figures."""
    from verglas.io.relion_micrographs import is_micrographs_star, tabulate_ctf
    from verglas.io.relion_tilt_series import project_path

    sources = find_images(params)
    fits: dict[Path, tuple[Optics, dict[str, float | str]]] = {}
    for name, result in results.items():
        value = result.values
        optics = Optics(
            round(value["pixel_size_angstrom"], 6),
            value["voltage_kv"],
            value["cs_mm"],
            value["amplitude_contrast"],
        )
        columns: dict[str, float | str] = {
            "rlnCtfImage": project_path((folder / f"ctf/{name}.ctf").absolute()) + ":mrc",
            "rlnDefocusU": value["defocus_u_angstrom"],
            "rlnDefocusV": value["defocus_v_angstrom"],
            "rlnCtfAstigmatism": value["astigmatism_angstrom"],
            "rlnDefocusAngle": value["defocus_angle_deg"],
            "rlnCtfFigureOfMerit": value["merit"],
            "rlnCtfMaxResolution": value["fit_resolution_angstrom"],
            "rlnPhaseShift": value["phase_shift_deg"],
            "vglCtfConfidence": value["confidence"],
            "vglSampleTilt": value["tilt_deg"],
            "vglSampleTiltAxis": value["tilt_axis_deg"],
            # Columns without a value where the rings tell nothing, which is so for all but thick specimens.
            "rlnMicrographIceThickness": value["thickness_angstrom"] or math.nan,
            "vglSampleThicknessError": value["thickness_error_angstrom"] or math.nan,
        }
        if not (params.find_phase_shift or params.phase_shift):
            del columns["rlnPhaseShift"]
        fits[sources[name].path] = (optics, columns)
    only = params.inputs[0]
    is_table = len(params.inputs) == 1 and only.suffix == ".star" and is_micrographs_star(only)
    tabulate_ctf(folder / "micrographs_ctf.star", fits, only if is_table else None)
    figures = [
        Figure(f"figures/{name}_{kind}.png", f"{name}: {caption}")
        for name in results
        for kind, caption in CAPTIONS.items()
    ]
    found = [result.values for result in results.values()]

    def median(key: str, digits: int) -> float:
        return round(float(np.median([value[key] for value in found])), digits)

    doubtful = sum(value["confidence"] < LEAST_CONFIDENCE for value in found)
    values = {
        "images": Value(len(results), "", "whose defocus was found"),
        "defocus": Value(
            round(median("defocus_angstrom", 0) / 1e4, 3), "µm", "at the image's centre; median"
        ),
        "astigmatism": Value(median("astigmatism_angstrom", 0), "Å", "defocus u less v; median"),
        "fit resolution": Value(median("fit_resolution_angstrom", 2), "Å", "to which the rings fit; median"),
        "doubtful": Value(doubtful, "images", "whose fit may be wrong"),
    }
    thick = [value["thickness_angstrom"] for value in found if value["thickness_angstrom"]]
    if thick:
        values["thickness"] = Value(
            round(float(np.median(thick)) / 10),
            "nm",
            f"of the specimen, where the rings tell it: in {len(thick)} of {len(found)}; median",
        )
    return Summary(figures, values, gather_warnings(results), ["micrographs_ctf.star"])


def estimate_images(items: list[Item], params: "CtfParams") -> Estimate:
    """From the sizes of the files, and rates measured on one core."""
    sizes = [item.record.measured.stat().st_size for item in items if item.record.measured.is_file()]
    # Pixels are two bytes or more.
    pixels = max(sizes, default=0) // 2
    seconds = sum(sizes) * 6e-8 + 3.0 * len(items)
    return Estimate(PROCESS_BYTES + (256 << 20) + 20 * pixels, len(items) * (3 << 20), seconds)


def _parse_grid(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    nodes = tuple(int(part) for part in match.groups()) if match else ()
    if len(nodes) != 3 or min(nodes) < 1 or max(nodes) > 16:
        raise UserError(f"`grid` must be up to 16 nodes along x, y and time such as 2x2x1; got {text!r}")
    return nodes[0], nodes[1], nodes[2]


@contextmanager
def _naming(source: ImageSource, pixel: float) -> Iterator[None]:
    """Say in an error whose defocus it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(
            f"the defocus of {str(source.path)!r} cannot be fitted at {pixel:g} Å per pixel: {error}"
        ) from None


def _open_movie(source: ImageSource, params: "CtfParams") -> "Movie":
    from verglas.io.movie import open_movie

    return open_movie(
        source.measured, eer_frames_per_fraction=params.eer_frames, eer_upsampling=params.eer_upsampling
    )


def _measure(
    name: str, source: ImageSource, params: "CtfParams", pixel: float, band: "Band", device: "torch.device"
) -> tuple["CellSpectra", FloatArray]:
    """Spectra of all cells, and the average of the frames."""
    import torch

    from verglas.algo.ctf.spectra import add_frames, join_times, measure_cells
    from verglas.steps.movie_frames import MovieFrames, read_gain

    movie = _open_movie(source, params)
    frames = MovieFrames(movie, 0, len(movie))
    total = frames.add_up()
    if len(movie) > 1 or params.gain is not None:
        gain = None if params.gain is None else read_gain(params.gain)
        if gain is not None and gain.shape != frames.shape:
            raise UserError(
                f"gain reference {str(params.gain)!r} has {gain.shape[1]} x {gain.shape[0]} pixels; expected "
                f"{frames.shape[1]} x {frames.shape[0]}"
            )
        frames.correct(total, gain)
    if params.spectra == "average":
        return measure_cells(torch.from_numpy(total).to(device), pixel, band, name), total
    count = _parse_grid(params.grid)[2]
    if count > len(movie):
        raise UserError(
            f"the movie has {len(movie)} frames, fewer than the {count} nodes in time of the `grid`"
        )
    parts = []
    groups = np.array_split(np.arange(len(movie)), max(count, 1))
    for numbers in groups:
        cells = [
            measure_cells(frames.prepare(int(number), frames.shape).to(device), pixel, band, name)
            for number in numbers
        ]
        middle = float(numbers.mean()) / max(len(movie) - 1, 1)
        parts.append(add_frames(cells, middle))
    return join_times(parts), total


def _tell(verdict: "Verdict") -> list[str]:
    if verdict.confidence < LEAST_CONFIDENCE:
        reasons = "; ".join(verdict.faults) or "all of its signs are weak"
        return [f"the defocus is doubtful (confidence {verdict.confidence:.2f}): {reasons}"]
    return list(verdict.faults)


def _write(
    name: str,
    cells: "CellSpectra",
    optics: Optics,
    found: "ImageDefocus",
    quality: "ImageQuality",
    folder: Path,
) -> list[str]:
    from verglas.algo.ctf.picture import draw_power
    from verglas.files import write_text
    from verglas.io.mrc import write_mrc

    picture, pixel = draw_power(cells, optics, found)
    outputs = [f"ctf/{name}.ctf", f"ctf/{name}.json"]
    write_mrc(folder / outputs[0], picture, voxel_size_angstrom=pixel)
    profile = quality.profile

    def listed(values: FloatArray, digits: int) -> Any:
        return np.round(values, digits).tolist()

    record = {
        "defocus_angstrom": listed(found.surface_angstrom, 1),
        "nodes_xyt": list(found.model.nodes),
        "frequency_per_angstrom": listed(profile.frequency, 6),
        "ripple": listed(profile.ripple, 5),
        "fit": listed(profile.fit, 5),
        "correlation": listed(quality.correlation, 4),
    }
    write_text(folder / outputs[1], json.dumps(record) + "\n")
    return outputs


def _draw(
    name: str,
    image: FloatArray,
    pixel: float,
    cells: "CellSpectra",
    found: "ImageDefocus",
    quality: "ImageQuality",
    folder: Path,
) -> list[str]:
    from scipy.ndimage import gaussian_filter

    from verglas.algo.ctf.fit import LEAST_SIGNIFICANCE
    from verglas.algo.ctf.surface import surface_weights
    from verglas.figures.ctf import draw_rings, draw_surface
    from verglas.steps.series_results import shrink

    paths = {kind: f"figures/{name}_{kind}.png" for kind in CAPTIONS}
    profile = quality.profile
    curves = {key: getattr(profile, key) for key in ("frequency", "power", "background", "ripple", "fit")}
    draw_rings(
        curves,
        profile.direction_deg,
        _even_out(profile, quality.resolution_angstrom),
        folder / paths["fit"],
        quality=(quality.correlation, quality.resolution_angstrom),
        nodes=_label_nodes(found, quality),
    )
    line = np.linspace(-0.5, 0.5, 41)
    y, x = (axis.ravel() for axis in np.meshgrid(line, line, indexing="ij"))
    places = np.stack([x, y], axis=1) * cells.extent_angstrom
    weights = surface_weights(places, np.full(len(places), 0.5), cells.extent_angstrom, found.model.nodes)
    surface = (weights @ found.fit.values[:-2]).reshape(41, 41)
    small, small_pixel = shrink(image, pixel)
    draw_surface(
        gaussian_filter(small, 1.5),
        small_pixel,
        surface,
        (found.search_defocus_angstrom, found.search_score),
        LEAST_SIGNIFICANCE,
        folder / paths["surface"],
    )
    return list(paths.values())


def _label_nodes(found: "ImageDefocus", quality: "ImageQuality") -> tuple[FloatArray, str] | None:
    """Where the rings of a thick specimen vanish, and what that tells."""
    thickness, error = quality.tell_thickness(found)
    if quality.path is None or thickness is None or error is None:
        return None
    return quality.path.nodes, f"nodes of {thickness / 10:.0f} ± {error / 10:.0f} nm"


def _even_out(profile: "Profile", end_angstrom: float) -> tuple[FloatArray, FloatArray]:
    """Rings of data and model `(a, k)` by direction, as strong everywhere to where they end."""
    from scipy.ndimage import gaussian_filter1d, maximum_filter1d

    size = maximum_filter1d(np.abs(profile.fit_2d).max(axis=0), max(3, len(profile.frequency) // 12))
    end = int(np.searchsorted(profile.frequency, 1 / end_angstrom))
    size = np.maximum(size, size[min(end, len(size) - 1)])
    return gaussian_filter1d(profile.ripple_2d, 1.0, axis=1) / size, profile.fit_2d / size
