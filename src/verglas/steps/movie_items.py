"""Which movies there are: files, folders, RELION's `movies.star`, or those that SerialEM's mdocs name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verglas.errors import UserError
from verglas.files import check_exists
from verglas.steps.recording import group_mdocs, read_recording

MOVIE_SUFFIXES = (".mrc", ".mrcs", ".tif", ".tiff", ".eer")


@dataclass(frozen=True)
class MovieSource:
    """One movie.

    Parameters
    ----------
    path
        The file.
    pixel_size_angstrom, voltage_kv
        What the mdoc or the STAR file says of it, when one does.
    problem
        Why it cannot be used, when that is known already.
    """

    path: Path
    pixel_size_angstrom: float | None = None
    voltage_kv: float | None = None
    problem: str = ""


def find_movies(inputs: Sequence[Path], frames: Path | None) -> dict[str, MovieSource]:
    """Find the movies that the inputs name, by the name that their results get.

    Parameters
    ----------
    inputs
        Movies, folders of them, `movies.star` files, and mdocs.
    frames
        Folder of the movies that mdocs name; that of the mdoc when none.

    Raises
    ------
    UserError
        When an input is missing or names nothing, or two movies have one name.
    """
    sources: dict[str, MovieSource] = {}
    mdocs = []
    for path in inputs:
        check_exists(path, "movie")
        if path.suffix == ".mdoc":
            mdocs.append(path)
            continue
        for source in _expand(path):
            _add(sources, source)
    for series, paths in group_mdocs(mdocs).items():
        recording = read_recording(paths)
        folder = frames or paths[0].parent
        for name in recording.frame_names:
            if name is None:
                raise UserError(f"the mdoc of series {series!r} names no movie for one of its views")
            path = folder / name
            problem = (
                ""
                if path.is_file()
                else f"movie {str(path)!r}, which series {series!r} names, does not exist"
            )
            _add(sources, MovieSource(path, recording.pixel_size_angstrom, recording.voltage_kv, problem))
    return sources


def _expand(path: Path) -> list[MovieSource]:
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in MOVIE_SUFFIXES)
        if not found:
            raise UserError(f"folder {str(path)!r} has no movies; expected {', '.join(MOVIE_SUFFIXES)}")
        return [MovieSource(p) for p in found]
    return _read_star(path) if path.suffix == ".star" else [MovieSource(path)]


def _read_star(path: Path) -> list[MovieSource]:
    from verglas.io.relion_tilt_series import find_file
    from verglas.io.star import get_table, read_star, require_columns

    blocks = read_star(path)
    table = require_columns(get_table(blocks, "movies", path), ["rlnMicrographMovieName"], path, "movies")
    groups = {}
    if "optics" in blocks and "rlnOpticsGroup" in table:
        for row in get_table(blocks, "optics", path).to_dict("records"):
            groups[row["rlnOpticsGroup"]] = (row.get("rlnMicrographOriginalPixelSize"), row.get("rlnVoltage"))
    sources = []
    for row in table.to_dict("records"):
        pixel, voltage = groups.get(row.get("rlnOpticsGroup"), (None, None))
        movie = find_file(str(row["rlnMicrographMovieName"]), path)
        sources.append(
            MovieSource(
                movie, None if pixel is None else float(pixel), None if voltage is None else float(voltage)
            )
        )
    return sources


def _add(sources: dict[str, MovieSource], source: MovieSource) -> None:
    name = source.path.name
    for suffix in MOVIE_SUFFIXES:
        name = name.removesuffix(suffix)
    if name in sources:
        raise UserError(
            f"movies {str(sources[name].path)!r} and {str(source.path)!r} have one name; expected different ones"
        )
    sources[name] = source
