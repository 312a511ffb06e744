"""`motion`: movies to micrographs, without the motion of specimen and stage."""

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from verglas.errors import UserError
from verglas.model import MotionModel
from verglas.steps.motion_results import (
    CAPTIONS,
    Look,
    Spectrum,
    draw_motion,
    look_at,
    measure_motion,
    measure_spectrum,
    write_micrographs_table,
)
from verglas.steps.movie_items import MovieSource, find_movies
from verglas.steps.series_results import PROCESS_BYTES, choose_pixel_size, gather_warnings
from verglas.steps.step import Context, Estimate, Figure, Item, ItemResult, Params, Step, Summary, Value

if TYPE_CHECKING:
    import torch

    from verglas.algo.motion.estimate import Estimated
    from verglas.algo.motion.sums import FrameSums
    from verglas.io.movie import Movie
    from verglas.steps.movie_frames import MovieFrames

FloatArray = npt.NDArray[np.float32]


class MotionParams(Params):
    """Estimate the motion in movies, take it out, and add up the frames."""

    movies: Annotated[
        tuple[Path, ...],
        Field(
            description="movies (MRC, TIFF, EER), folders, RELION's `movies.star`, or mdocs that name movies"
        ),
    ]
    frames: Annotated[
        Path | None,
        Field(description="folder of the movies that mdocs name; that of the mdoc when not given"),
    ] = None
    gain: Annotated[
        Path | None, Field(description="reference that frames are multiplied by, MRC or TIFF")
    ] = None
    gain_rotation: Annotated[
        Literal[0, 90, 180, 270],
        Field(description="turn the reference clockwise first, as RELION does; degrees"),
    ] = 0
    gain_flip: Annotated[
        Literal["none", "y", "x"], Field(description="then flip it upside down (y) or left to right (x)")
    ] = "none"
    pixel_size: Annotated[
        float | None, Field(gt=0, description="of the frames, in Å; that of the file when not given")
    ] = None
    factor: Annotated[
        float, Field(ge=1, le=16, description="Fourier-crop to pixels this many times as large, 1.5 say")
    ] = 1.0
    first_frame: Annotated[int, Field(ge=1, description="first frame that is used, from 1")] = 1
    last_frame: Annotated[
        int | None, Field(ge=1, description="last frame that is used; the last when not given")
    ] = None
    grid: Annotated[
        str,
        Field(
            description="nodes of the motion along x, y and time; 1x1xN is one motion of all the image with N nodes, "
            "finer grids add to a motion of the whole image that is free in each frame"
        ),
    ] = "3x3x4"
    exposure: Annotated[
        float | None,
        Field(gt=0, description="of one frame, in e/Å²; given, a dose-weighted image is written too"),
    ] = None
    pre_exposure: Annotated[float, Field(ge=0, description="before the first frame, in e/Å²")] = 0.0
    odd_even: Annotated[bool, Field(description="also write the sums of odd and of even frames")] = False
    aligned_stack: Annotated[bool, Field(description="also write the aligned frames, in half precision")] = (
        False
    )
    eer_frames: Annotated[int | None, Field(ge=1, description="raw frames of an EER movie that make one")] = (
        None
    )
    eer_upsampling: Annotated[
        Literal[1, 2, 4], Field(description="pixels along the side of an EER camera's")
    ] = 1
    voltage: Annotated[float, Field(ge=100, le=300, description="in kV, where the input does not say it")] = (
        300.0
    )
    cs: Annotated[float, Field(ge=0, description="spherical aberration in mm")] = 2.7
    amplitude_contrast: Annotated[float, Field(ge=0, le=1, description="as a fraction")] = 0.1


def list_items(params: MotionParams) -> list[Item]:
    """One item a movie. What is wrong with one is its item's error, and does not stop the others."""
    _parse_grid(params.grid)
    sources = find_movies(params.movies, params.frames)
    return [
        Item(name, source, (source.path,) if source.path.is_file() else ())
        for name, source in sources.items()
    ]


def run_item(item: Item, params: MotionParams, context: Context) -> ItemResult:
    """Correct one movie."""
    from verglas.algo.motion.field import fit_polynomial
    from verglas.runtime import choose_device, release_memory, set_threads

    set_threads(context.threads)
    source: MovieSource = item.record
    if source.problem:
        raise UserError(source.problem)
    frames, warnings = _open(source, params)
    pixel, told = choose_pixel_size(
        params.pixel_size,
        frames.movie.pixel_size_angstrom,
        source.pixel_size_angstrom,
        f"movie {str(source.path)!r}",
    )
    warnings += told
    gain, gain_path = _load_gain(params, context.folder)
    before, bad, told = _correct(frames, gain, pixel, params)
    # A whole image is not kept for the sake of what was needed of it.
    del gain
    release_memory()
    warnings += told
    shape = _choose_shape(frames.shape, params.factor)
    binned = pixel * frames.shape[1] / shape[1]
    device = choose_device(context.device)
    found = _estimate(frames, shape, binned, params)
    release_memory()
    model = replace(found.model, first_frame=frames.start)
    stack = [f"aligned/{item.name}.mrcs"] if params.aligned_stack else []
    path = context.folder / stack[0] if stack else None
    sums = _add_up(frames, shape, binned, model, params, source, device, path)
    outputs = [f"{kind}/{item.name}.mrc" for kind in _list_images(params)]
    average, written, weighted = _write_sums(sums, [context.folder / name for name in outputs], binned)
    del sums
    coefficients, misfit = fit_polynomial(model)
    values = measure_motion(model, params.exposure, params.pre_exposure) | {
        "frames": frames.count,
        "pixel_size_angstrom": binned,
        "original_pixel_size_angstrom": pixel,
        "voltage_kv": source.voltage_kv or params.voltage,
        "defects": len(bad),
        "error_angstrom": found.error_pixels * binned,
        "information_limit_angstrom": binned / found.information_limit_per_pixel,
        "polynomial_misfit_angstrom": misfit,
    }
    names = (f"motion/{item.name}.json", f"motion/{item.name}.star")
    figures = [f"figures/{item.name}_{kind}.png" for kind in CAPTIONS]

    def finish() -> None:
        from verglas.io.motion import MovieFacts, write_motion, write_relion_motion

        with written:
            if weighted is not None:
                _begin_image(written, context.folder / outputs[-1], weighted, binned)
        write_motion(context.folder / names[0], model)
        facts = MovieFacts(
            source.path,
            frames.movie.shape,
            pixel,
            frames.shape[1] / shape[1],
            values["voltage_kv"],
            gain_path,
            params.exposure,
            params.pre_exposure,
            *((params.eer_upsampling, params.eer_frames) if params.eer_frames else (None, None)),
        )
        write_relion_motion(
            context.folder / names[1], facts, model, coefficients if model.is_local else None, bad[:, ::-1]
        )
        draw_motion(item.name, average, before, found, model, context.folder)

    return ItemResult((*outputs, *stack, *names, *figures), values, tuple(warnings), finish)


def summarise(results: dict[str, ItemResult], params: MotionParams, folder: Path) -> Summary:
    """Write `micrographs.star` and gather the figures."""
    write_micrographs_table(results, params, folder)
    figures = [
        Figure(f"figures/{name}_{kind}.png", f"{name}: {caption}")
        for name in results
        for kind, caption in CAPTIONS.items()
    ]
    found = [result.values for result in results.values()]

    def median(key: str) -> float:
        return round(float(np.median([value[key] for value in found])), 2)

    values = {
        "movies": Value(len(results), "", "corrected"),
        "drift": Value(median("drift_angstrom"), "Å", "length of the way of the middle of the image; median"),
        "local motion": Value(median("local_angstrom"), "Å", "RMS over the image in the last frame; median"),
        "defects": Value(round(median("defects")), "pixels", "mended; median"),
    }
    return Summary(figures, values, gather_warnings(results), ["micrographs.star"])


def estimate(items: list[Item], params: MotionParams) -> Estimate:
    """From the sizes of the movies, and rates measured on one core."""
    memory, disk, seconds = 0, 0, 0.0
    for item in items:
        if item.record.problem:
            continue
        movie = _open_movie(item.record.path, params)
        count, height, width = movie.shape
        pixels = height * width
        kept = 0 if movie.has_rows else movie.dtype.itemsize
        memory = max(memory, pixels * (count * (kept + 1) + 32))
        images = 1 + (params.exposure is not None) + 2 * params.odd_even
        disk += int(pixels / params.factor**2 * (4 * images + 2 * count * params.aligned_stack))
        seconds += 2.0 + pixels * count * 1.5e-8
    return Estimate(PROCESS_BYTES + memory, disk, seconds)


def _parse_grid(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    nodes = tuple(int(part) for part in match.groups()) if match else ()
    if len(nodes) != 3 or min(nodes) < 1 or max(nodes[:2]) > 16:
        raise UserError(f"`grid` must be nodes along x, y and time such as 4x4x5 or 1x1x8; got {text!r}")
    return nodes[0], nodes[1], nodes[2]


def _open_movie(path: Path, params: MotionParams) -> "Movie":
    from verglas.io.movie import open_movie

    return open_movie(path, eer_frames_per_fraction=params.eer_frames, eer_upsampling=params.eer_upsampling)


def _open(source: MovieSource, params: MotionParams) -> "tuple[MovieFrames, list[str]]":
    from verglas.steps.movie_frames import MovieFrames

    movie = _open_movie(source.path, params)
    last = params.last_frame or len(movie)
    if not params.first_frame <= last <= len(movie):
        raise UserError(
            f"movie {str(source.path)!r} has {len(movie)} frames; expected `first_frame` to `last_frame` among them, "
            f"got {params.first_frame} to {last}"
        )
    frames = MovieFrames(movie, params.first_frame - 1, last)
    warnings = []
    if frames.count == 1:
        warnings.append("the movie has a single frame, so there is no motion to find")
    return frames, warnings


def _load_gain(params: MotionParams, folder: Path) -> tuple[FloatArray | None, Path | None]:
    """Turn the reference as asked, and tell where it lies in that orientation."""
    from verglas.algo.motion.gain import turn_gain
    from verglas.io.mrc import write_mrc
    from verglas.steps.movie_frames import read_gain

    if params.gain is None:
        return None, None
    gain = turn_gain(read_gain(params.gain), params.gain_rotation // 90, params.gain_flip)
    if params.gain_rotation == 0 and params.gain_flip == "none":
        return gain, params.gain
    path = folder / "gain.mrc"
    write_mrc(path, gain, voxel_size_angstrom=1.0)
    return gain, path


def _correct(
    frames: "MovieFrames", gain: FloatArray | None, pixel: float, params: MotionParams
) -> "tuple[Spectrum, npt.NDArray[np.int64], list[str]]":
    """Check the gain reference and find the defects; also returns the spectrum of the frames as they lie."""
    from verglas.algo.motion.gain import LEAST_SCORE, check_gain

    total = frames.add_up()
    warnings = []
    if gain is not None:
        what = f"gain reference {str(params.gain)!r}"
        check = check_gain(total, gain)
        if check.is_wrong:
            raise UserError(
                f"{what} does not fit movie {str(frames.movie.path)!r} as it is turned; expected "
                f"{_name_turn(check.best, params)}, which correlates with the frames at {check.best_score:.0f} "
                f"standard deviations of chance against {check.score:.0f}"
            )
        if check.inverse_score > LEAST_SCORE and check.score < 0:
            raise UserError(
                f"{what} is one that frames are divided by, as movie {str(frames.movie.path)!r} shows; expected its "
                "reciprocal"
            )
        if check.best_score < LEAST_SCORE:
            warnings.append(f"the frames show no trace of {what}; are they corrected already?")
    bad = frames.correct(total, gain)
    return measure_spectrum(total, pixel), bad, warnings


def _name_turn(best: tuple[int, str], params: MotionParams) -> str:
    """Which flags bring the reference from its file to where it fits."""
    from verglas.algo.motion.gain import ORIENTATIONS, turn_gain

    probe: Any = np.arange(6, dtype=np.float32).reshape(2, 3)
    wanted = turn_gain(turn_gain(probe, params.gain_rotation // 90, params.gain_flip), *best)
    for turns, flip in ORIENTATIONS:
        if np.array_equal(turn_gain(probe, turns, flip), wanted):
            return f"`gain_rotation` {90 * turns} and `gain_flip` {flip}"
    raise AssertionError("eight orientations are all there are")


def _choose_shape(shape: tuple[int, int], factor: float) -> tuple[int, int]:
    """Even sizes nearest to the shape over the factor."""
    if factor == 1:
        return shape
    y, x = (max(2, 2 * round(size / factor / 2)) for size in shape)
    return y, x


def _estimate(
    frames: "MovieFrames", shape: tuple[int, int], pixel: float, params: MotionParams
) -> "Estimated":
    """Estimate the motion, on the CPU: low frequencies are small."""
    import torch

    from verglas.algo.motion.bands import band_shape, read_band
    from verglas.algo.motion.estimate import Settings, estimate_motion
    from verglas.runtime import map_threads, release_memory

    low = band_shape(shape, pixel)
    bands = torch.empty(frames.count, low[0], low[1] // 2 + 1, dtype=torch.complex64)

    def read(number: int) -> None:
        bands[number] = read_band(partial(frames.read_rows, number), frames.shape, low, frames.gain)

    map_threads(read, range(frames.count))
    release_memory()
    return estimate_motion(bands, low, shape, Settings(_parse_grid(params.grid), pixel))


def _add_up(
    frames: "MovieFrames",
    shape: tuple[int, int],
    pixel: float,
    model: MotionModel,
    params: MotionParams,
    source: MovieSource,
    device: "torch.device",
    stack: Path | None,
) -> "FrameSums":
    """Add the frames up without their motion. `stack` is where aligned frames go."""
    import torch

    from verglas.algo.motion.sums import FrameSums, weight_by_exposure, weight_plainly
    from verglas.runtime import release_memory

    weighting = weight_plainly(frames.count)
    if params.exposure is not None:
        before = params.pre_exposure + frames.start * params.exposure
        voltage = source.voltage_kv or params.voltage
        weighting = weight_by_exposure(frames.count, pixel, params.exposure, before, voltage)
    sums = FrameSums(model, shape, pixel, weighting, even=params.odd_even, device=device)
    if shape == frames.shape and not params.aligned_stack:
        gain = None if frames.gain is None else torch.from_numpy(frames.gain)
        sums.add(range(frames.count), frames.read_rows, gain)
    else:
        _add_whole_frames(sums, frames, shape, pixel, model, stack)
    frames.release()
    release_memory()
    return sums


def _add_whole_frames(
    sums: "FrameSums",
    frames: "MovieFrames",
    shape: tuple[int, int],
    pixel: float,
    model: MotionModel,
    stack: Path | None,
) -> None:
    """Add frames that are cropped, or wanted one by one."""
    from verglas.algo.motion.sums import displace_frame
    from verglas.io.mrc import create_mrc
    from verglas.ops.kernels.warp import read_from

    with ExitStack() as files:
        writer = None
        if stack is not None:
            sizes = (frames.count, *shape)
            writer = files.enter_context(
                create_mrc(stack, sizes, voxel_size_angstrom=pixel, dtype=np.float16, is_stack=True)
            )
        for number in range(frames.count):
            read_rows = read_from([frames.prepare(number, shape)])
            sums.add([number], read_rows)
            if writer is not None:
                moved = displace_frame(model, number, read_rows, shape, pixel, device=sums.device)
                writer.write(moved.cpu().numpy())


def _list_images(params: MotionParams) -> list[str]:
    """Kinds of images in the order in which they are made."""
    halves = ["odd", "even"] if params.odd_even else []
    return ["averages", *halves, *(["dose_weighted"] if params.exposure is not None else [])]


def _write_sums(
    sums: "FrameSums", paths: list[Path], pixel: float
) -> "tuple[Look, ExitStack, torch.Tensor | None]":
    """Write what is not weighted, as soon as it is there: no image is kept for the sake of its file.

    Returns what is shown of the average, files that appear when they are closed, and the weighted image.
    """
    plain = sums.plain().cpu()
    with ExitStack() as files, ThreadPoolExecutor(1) as writer:
        written = writer.submit(_begin_image, files, paths[0], plain, pixel)
        average = look_at(plain.numpy(), pixel)
        written.result()
        if len(paths) > 2:
            even = sums.even().cpu()
            _begin_image(files, paths[1], plain - even, pixel)
            _begin_image(files, paths[2], even, pixel)
        # It takes the place of the others.
        weighted = sums.weighted().cpu().clone() if len(paths) % 2 == 0 else None
        return average, files.pop_all(), weighted
    raise AssertionError("files swallow no exception")


def _begin_image(files: ExitStack, path: Path, image: "torch.Tensor", pixel: float) -> None:
    """Write an image into a file that appears when `files` are closed."""
    from verglas.io.mrc import create_mrc

    writer = files.enter_context(create_mrc(path, image.shape, voxel_size_angstrom=pixel))
    writer.write(image.numpy())


MOTION_STEP = Step(
    name="motion",
    params=MotionParams,
    list_items=list_items,
    run_item=run_item,
    summarise=summarise,
    estimate=estimate,
)
