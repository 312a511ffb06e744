"""Pictures inside the page, as large as its size allows."""

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from PIL import Image

# Base64 makes four bytes of three; the page shall stay below 5 MB.
BUDGET_BYTES = 3_400_000
MOST_PICTURES = 60
_QUALITY = 88


@dataclass(frozen=True)
class Embedded:
    """A picture for the page: its data address, empty when there are too many, and where the file is."""

    data: str
    link: str
    width: int


def embed_pictures(paths: Sequence[Path], base: Path) -> dict[Path, Embedded]:
    """Turn pictures into data addresses that together fit the page.

    Small ones stay as they are; the others share what is left, as JPEG and at last with fewer pixels.

    Parameters
    ----------
    paths
        PNG files, most important first.
    base
        Folder of the page, from which it links to the files.
    """
    shown = list(dict.fromkeys(paths))[:MOST_PICTURES]
    left, fitted = BUDGET_BYTES, {}
    for rank, path in enumerate(sorted(shown, key=lambda one: one.stat().st_size)):
        data, kind = _fit(path, left // (len(shown) - rank))
        left -= len(data)
        fitted[path] = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {
        path: Embedded(fitted.get(path, ""), quote(os.path.relpath(path, base)), _read_width(path))
        for path in dict.fromkeys(paths)
    }


def _fit(path: Path, limit: int) -> tuple[bytes, str]:
    data = path.read_bytes()
    if len(data) <= limit:
        return data, "png"
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    while True:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
        if buffer.tell() <= limit or min(image.size) < 32:
            return buffer.getvalue(), "jpeg"
        image = image.resize((int(image.width * 0.8), int(image.height * 0.8)), Image.Resampling.LANCZOS)


def _read_width(path: Path) -> int:
    with Image.open(path) as image:
        return image.width
