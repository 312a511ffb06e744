"""Where the images of the views of a series are: sections of its stack, or files named after its movies."""

import bisect
from pathlib import Path

from verglas.errors import UserError
from verglas.model import ImageReference
from verglas.steps.recording import IMAGE_SUFFIXES, Recording, find_stack

HALVES = ("odd", "even")
"""Folders of half sums beside the images, and the last word of their stacks."""

ImagesByName = dict[str, list[Path]]


def find_images(
    name: str, recording: Recording, place: Path, folders: dict[Path, ImagesByName]
) -> tuple[ImageReference, ...]:
    """Find the image of each view: a section of the series' stack, or a file named after the movie.

    Parameters
    ----------
    name
        Of the series.
    recording
        Of its views.
    place
        The stack, or the folder of all images.
    folders
        What was found in folders before; `place` is added, so that thousands of series list it once.

    Raises
    ------
    UserError
        When a view has no image, or more than one.
    """
    stack = find_stack(name, place) if place.is_dir() else place
    if recording.sections is not None and stack is not None:
        return tuple(ImageReference(stack, int(section)) for section in recording.sections)
    if not place.is_dir():
        raise UserError(
            f"`images` is the file {str(place)!r}, but series {name!r} has an mdoc for each view; expected the "
            "folder of their images"
        )
    if place not in folders:
        folders[place] = _index_folder(place)
    return tuple(
        ImageReference(_find_image(name, frame, tilt, place, folders[place]))
        for frame, tilt in zip(recording.frame_names, recording.tilt_deg, strict=True)
    )


def find_halves(
    name: str, recording: Recording, place: Path, folders: dict[Path, ImagesByName]
) -> tuple[tuple[ImageReference, ...], ...]:
    """Find the sums of odd and of even frames of each view, in the folders beside that of the images.

    Raises
    ------
    UserError
        When there is no such folder, or it lacks a view.
    """
    halves = [place.parent / word for word in HALVES]
    for folder in halves:
        if not folder.is_dir():
            raise UserError(
                f"`odd_even` needs folder {str(folder)!r}, which does not exist; expected images that motion wrote "
                "with `odd_even`"
            )
    return tuple(find_images(name, recording, folder, folders) for folder in halves)


def _index_folder(folder: Path) -> ImagesByName:
    """List the images of a folder by their plain name."""
    index: ImagesByName = {}
    for path in sorted(folder.glob("[!.]*.mrc")):
        index.setdefault(plain_name(path.name), []).append(path)
    return dict(sorted(index.items()))


def plain_name(name: str) -> str:
    """Name of a file without its suffix and with dots as RELION writes them."""
    for suffix in IMAGE_SUFFIXES:
        name = name.removesuffix(suffix)
    return name.replace(".", "_")


def _find_image(name: str, frame: str | None, tilt_deg: float, folder: Path, index: ImagesByName) -> Path:
    if frame is None:
        raise UserError(
            f"series {name!r} has no stack in {str(folder)!r}, and its mdoc names no movie of the view at "
            f"{tilt_deg:g} degrees"
        )
    plain = plain_name(frame)
    found = index.get(plain, [])
    if not found:
        # Motion correction adds a word: `_aligned`, `_DW`.
        names = list(index)
        for other in names[bisect.bisect_left(names, f"{plain}_") :]:
            if not other.startswith(f"{plain}_"):
                break
            if other[len(plain) + 1 :][:1].isalpha():
                found = [*found, *index[other]]
    if len(found) != 1:
        what = " and ".join(path.name for path in found[:3]) or "none"
        raise UserError(
            f"the view of series {name!r} at {tilt_deg:g} degrees needs one image of the movie {frame!r} in "
            f"{str(folder)!r}; found {what}"
        )
    return found[0]
