"""The formats from which tilt series are imported: how each is known, and how it becomes a `TiltSeries`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from verglas.errors import FileFormatError, UserError
from verglas.files import check_exists
from verglas.model import ImageReference, Optics, TiltSeries
from verglas.steps.recording import find_stack, read_recording, series_name

if TYPE_CHECKING:
    from verglas.io.mrc import MrcHeader

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SeriesSource:
    """Where one series comes from.

    Parameters
    ----------
    name
        Of the series.
    format
        `warp`, `imod`, `etomo`, `aretomo`, `relion`, `mdoc` or `emclarity`.
    path
        The file that the user gave, or for etomo the folder.
    files
        Every file of metadata that is read.
    stack
        The images; none where the metadata name them, or where no stack was found.
    mdoc
        SerialEM's notes on the exposures, when given.
    series
        For RELION what its index and the file of the series say.
    """

    name: str
    format: str
    path: Path
    files: tuple[Path, ...]
    stack: Path | None = None
    mdoc: Path | None = None
    series: TiltSeries | None = None


@dataclass(frozen=True)
class ImportedSeries:
    """A series as its format has it.

    Parameters
    ----------
    series
        The series.
    stage_deg
        `(n,)` tilt angles of its views with the sign in which the microscope wrote them.
    recorded_deg
        `(m,)` those of all views that were recorded, also the ones that the format left out.
    warnings
        Sentences for the user.
    """

    series: TiltSeries
    stage_deg: FloatArray
    recorded_deg: FloatArray
    warnings: tuple[str, ...] = ()


def find_sources(path: Path) -> list[SeriesSource]:
    """Tell the format of a file or folder, and list the series in it, without their stacks.

    Raises
    ------
    UserError
        When there is no such file, or it is of no format that is known.
    """
    path = check_exists(path, "input")
    if path.is_dir():
        transforms = _find_etomo_transforms(path)
        if transforms is None:
            raise UserError(
                f"folder {str(path)!r} does not hold one alignment of etomo (one .xf with its .tlt); {_KNOWN}"
            )
        return [_etomo_source(path, transforms)]
    suffix = path.suffix.lower()
    if suffix == ".star":
        return _list_relion(path)
    if suffix == ".xf":
        return [_imod_source(path)]
    if path.name.endswith(("_ctf.tlt", "_ctf_refine.tlt")):
        stem = path.name.removesuffix(".tlt").removesuffix("_refine").removesuffix("_ctf")
        prefix, ali, number = stem.rpartition("_ali")
        return [SeriesSource(prefix if ali and number.isdigit() else stem, "emclarity", path, (path,))]
    if suffix == ".aln":
        table = path.with_name(f"{path.stem}_CTF.txt")
        return [
            SeriesSource(series_name(path), "aretomo", path, (path, table) if table.is_file() else (path,))
        ]
    if suffix in {".xml", ".mdoc"}:
        return [SeriesSource(series_name(path), {".xml": "warp", ".mdoc": "mdoc"}[suffix], path, (path,))]
    raise UserError(f"input {str(path)!r} is of no format that `import` reads; {_KNOWN}")


_KNOWN = (
    "expected Warp's .xml, IMOD's .xf or a folder of etomo, AreTomo's .aln, RELION's tilt_series.star, "
    "SerialEM's .mdoc of a series, or emClarity's _ctf.tlt"
)


def read_source(
    source: SeriesSource, header: "MrcHeader | None", optics_of: Callable[[float | None], Optics]
) -> ImportedSeries:
    """Read one series.

    Parameters
    ----------
    source
        From :func:`find_sources`.
    header
        Of its stack; none only where the metadata name the images.
    optics_of
        Makes the optics from the pixel size that the metadata state, or none.

    Raises
    ------
    UserError
        When a file cannot be read, or does not fit to the stack.
    """
    if source.format == "relion":
        return _read_relion(source, header, optics_of)
    assert source.stack is not None
    assert header is not None
    readers: dict[str, Callable[..., ImportedSeries]] = {
        "warp": _read_warp,
        "imod": _read_imod,
        "etomo": _read_imod,
        "aretomo": _read_aretomo,
        "mdoc": _read_mdoc,
        "emclarity": _read_emclarity,
    }
    return readers[source.format](source, source.stack, header, optics_of)


def _etomo_source(folder: Path, transforms: Path) -> SeriesSource:
    commands = [folder / name for name in ("newst.com", "tilt.com") if (folder / name).is_file()]
    tables = sorted(path for suffix in (".tlt", ".xtilt", ".local") for path in folder.glob(f"*{suffix}"))
    raw = [path] if (path := transforms.with_suffix(".rawtlt")).is_file() else []
    return SeriesSource(transforms.stem, "etomo", folder, (transforms, *tables, *raw, *commands))


def _find_etomo_transforms(folder: Path) -> Path | None:
    """Find the `.xf` that `newst.com` names, or the only one."""
    from verglas.io.imod import read_command

    if (command := folder / "newst.com").is_file():
        words = read_command(command).values("TransformFile") or ("",)
        if (named := folder / Path(words[0]).name).is_file():
            return named
    found = sorted(folder.glob("*.xf"))
    return found[0] if len(found) == 1 else None


def _imod_source(path: Path) -> SeriesSource:
    # The excluded views, the x-axis tilt and the thickness of etomo are only in its command files.
    if (path.parent / "tilt.com").is_file() and _find_etomo_transforms(path.parent) == path:
        return _etomo_source(path.parent, path)
    beside = [path.with_suffix(suffix) for suffix in (".tlt", ".rawtlt", ".xtilt")]
    found = [one for one in beside if one.is_file()]
    if not any(one.suffix in {".tlt", ".rawtlt"} for one in found):
        raise UserError(f"{str(path)!r} has no tilt angles beside it; expected {beside[0].name!r} or .rawtlt")
    return SeriesSource(path.stem, "imod", path, (path, *found))


def _list_relion(path: Path) -> list[SeriesSource]:
    from verglas.io.relion_tilt_series import read_tilt_series

    return [
        SeriesSource(name, "relion", path, (path,), series=series)
        for name, series in read_tilt_series(path).items()
    ]


def _read_warp(
    source: SeriesSource, stack: Path, header: "MrcHeader", optics_of: Callable[[float | None], Optics]
) -> ImportedSeries:
    from verglas.io.warp import read_warp_xml, tilt_series_from_warp

    item = read_warp_xml(source.path)
    # The document's own pixel size is that of the movies, which Warp bins for the stack.
    optics = optics_of(None)
    series = tilt_series_from_warp(
        item,
        name=source.name,
        pixel_size_angstrom=optics.pixel_size_angstrom,
        image_shape=header.shape[1:],
        stack=stack,
    )
    stage = item.numbers("Angles")
    assert stage is not None
    if header.shape[0] == series.selected.sum() < len(series):
        # Warp leaves views that are not used out of its stacks.
        used = series.selected
        series = series.take(used)
        images = tuple(ImageReference(stack, section) for section in range(len(series)))
        return ImportedSeries(replace(series, images=images), stage[used], stage)
    _check_count(source, stack, header, len(series))
    return ImportedSeries(series, stage, stage)


def _read_imod(
    source: SeriesSource, stack: Path, header: "MrcHeader", optics_of: Callable[[float | None], Optics]
) -> ImportedSeries:
    from verglas.io.imod import ImodAlignment, read_imod_folder, read_tlt, read_xf, tilt_series_from_imod

    if source.format == "etomo":
        alignment = read_imod_folder(source.path)
    else:
        tables = {path.suffix: read_tlt(path) for path in source.files[1:]}
        transforms = read_xf(source.path)
        for suffix, angles in tables.items():
            if len(angles) != len(transforms):
                raise FileFormatError(
                    f"{source.path.with_suffix(suffix).name!r} has {len(angles)} angles, but "
                    f"{source.path.name!r} has {len(transforms)} transforms; expected as many"
                )
        tilt = tables.get(".tlt", tables.get(".rawtlt"))
        assert tilt is not None
        alignment = ImodAlignment(transforms, tilt, tables.get(".xtilt"))
    _check_count(source, stack, header, len(alignment.tilt_deg))
    series = tilt_series_from_imod(
        alignment, name=source.name, stack=stack, optics=optics_of(None), image_shape=header.shape[1:]
    )
    raw = next((read_tlt(path) for path in source.files if path.suffix == ".rawtlt"), alignment.tilt_deg)
    if len(raw) == len(series):
        series = replace(series, nominal_tilt_deg=raw)
    return _as_recorded(series)


def _read_aretomo(
    source: SeriesSource, stack: Path, header: "MrcHeader", optics_of: Callable[[float | None], Optics]
) -> ImportedSeries:
    from verglas.io.aretomo import read_aln, read_aretomo_ctf, tilt_series_from_aretomo

    alignment = read_aln(source.path)
    ctf = read_aretomo_ctf(source.files[1]) if len(source.files) > 1 else None
    warnings: tuple[str, ...] = ()
    if ctf is not None and len(ctf.views) != len(alignment.views):
        told = f"{source.files[1].name!r} has {len(ctf.views)} lines for {len(alignment.views)} aligned views"
        ctf, warnings = None, (f"{told}, so the defocus is not taken from it",)
    size = alignment.raw_size
    if size is not None:
        _check_count(source, stack, header, size[2])
        if header.shape[1:] != (size[1], size[0]):
            raise UserError(
                f"stack {str(stack)!r} has images of {header.shape[2]} x {header.shape[1]} pixels, but "
                f"{source.path.name!r} is of {size[0]} x {size[1]}"
            )
    series = tilt_series_from_aretomo(
        alignment,
        name=source.name,
        stack=stack,
        optics=optics_of(None),
        image_shape=header.shape[1:],
        ctf=ctf,
    )
    _check_sections(source, series, header)
    recorded = np.concatenate([series.nominal_tilt_deg, alignment.dark_frames[:, 2]])
    return ImportedSeries(series, series.nominal_tilt_deg, recorded, warnings)


def _read_mdoc(
    source: SeriesSource, stack: Path, header: "MrcHeader", optics_of: Callable[[float | None], Optics]
) -> ImportedSeries:
    recording = read_recording([source.path])
    if recording.sections is None:
        raise FileFormatError(
            f"{str(source.path)!r} is the mdoc of a single view; expected that of a series (`stack` makes stacks "
            "from single views)"
        )
    _check_count(source, stack, header, len(recording))
    optics = optics_of(recording.pixel_size_angstrom)
    if recording.voltage_kv:
        optics = replace(optics, voltage_kv=recording.voltage_kv)
    rows = np.argsort(recording.sections)
    series = TiltSeries(
        name=source.name,
        optics=optics,
        image_shape=header.shape[1:],
        images=tuple(ImageReference(stack, int(section)) for section in recording.sections[rows]),
        nominal_tilt_deg=recording.tilt_deg[rows],
        z_rot_deg=np.full(len(rows), recording.axis_deg or 0.0),
    )
    _check_sections(source, series, header)
    return _as_recorded(series)


def _read_emclarity(
    source: SeriesSource, stack: Path, header: "MrcHeader", optics_of: Callable[[float | None], Optics]
) -> ImportedSeries:
    from verglas.io.emclarity import read_ctf_table, tilt_series_from_emclarity
    from verglas.units import ANGSTROM_PER_METRE

    table = read_ctf_table(source.path)
    optics = optics_of(float(table[0, 15]) * ANGSTROM_PER_METRE)
    # Shifts are in pixels, so the pixel size has its say before they become lengths.
    table[:, 15] = optics.pixel_size_angstrom / ANGSTROM_PER_METRE
    series = tilt_series_from_emclarity(table, name=source.name, stack=stack, image_shape=header.shape[1:])
    _check_sections(source, series, header)
    return _as_recorded(series)


def _read_relion(
    source: SeriesSource, header: "MrcHeader | None", optics_of: Callable[[float | None], Optics]
) -> ImportedSeries:
    from verglas.io.mrc import read_mrc_header

    series = source.series
    assert series is not None
    known = series.optics
    optics = replace(known, pixel_size_angstrom=optics_of(known.pixel_size_angstrom).pixel_size_angstrom)
    changes: dict[str, Any] = {"optics": optics}
    if source.stack is not None and header is not None:
        _check_count(source, source.stack, header, len(series))
        changes["images"] = tuple(ImageReference(source.stack, row) for row in range(len(series)))
    else:
        for path in dict.fromkeys(image.path for image in series.images):
            check_exists(path, f"image of series {source.name!r}")
        header = read_mrc_header(series.images[0].path)
        _check_sections(source, series, header)
    if header.shape[1:] != series.image_shape:
        raise UserError(
            f"images of series {source.name!r} have (y, x) = {header.shape[1:]}, but {source.path.name!r} says "
            f"{series.image_shape}"
        )
    return _as_recorded(replace(series, **changes))


def _as_recorded(series: TiltSeries) -> ImportedSeries:
    return ImportedSeries(series, series.nominal_tilt_deg, series.nominal_tilt_deg)


def _check_count(source: SeriesSource, stack: Path, header: "MrcHeader", views: int) -> None:
    if header.shape[0] != views:
        raise UserError(
            f"stack {str(stack)!r} has {header.shape[0]} sections, but {source.path.name!r} has {views} views; "
            "expected as many"
        )


def _check_sections(source: SeriesSource, series: TiltSeries, header: "MrcHeader") -> None:
    first = series.images[0].path
    sections = [image.section or 0 for image in series.images if image.path == first]
    if max(sections) >= header.shape[0]:
        raise UserError(
            f"{source.path.name!r} has a view in section {max(sections) + 1}, but {str(first)!r} has "
            f"{header.shape[0]} sections"
        )
    if len(set(sections)) < len(sections):
        raise UserError(f"{source.path.name!r} has two views in one section of {str(first)!r}")


def find_source_stack(source: SeriesSource, given: Path | None) -> Path | None:
    """Find the stack of a series: the file given, or one of its name in the folder given or beside the input."""
    if given is not None and not given.is_dir():
        return given
    if source.format == "relion" and given is None:
        return None
    beside = source.path if source.path.is_dir() else source.path.parent
    return find_stack(source.name, given or beside)
