"""STAR tables: data blocks that hold a loop (a table) or pairs of a label and a value.

The dialect is RELION's: one row a line, values separated by blanks, quotes around values that hold blanks,
comments after `#`. Labels lose their leading underscore on reading and get it back on writing.
"""

import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl

from verglas.errors import FileFormatError, UserError
from verglas.files import atomic_path, check_file

Value = int | float | str
"""What a label holds in a block of pairs."""

Block = pd.DataFrame | dict[str, Value]
"""A table for a loop, a dictionary for pairs."""

_TEXT_LABELS = frozenset(
    {
        "rlnCtfImage",
        "rlnCtfPowerSpectrum",
        "rlnMicrographMetadata",
        "rlnMicrographNameEven",
        "rlnMicrographNameOdd",
        "rlnReferenceImage",
        "rlnTomoReconstructedTomogram",
        "rlnTomoReconstructedTomogramDenoised",
        "rlnTomoReconstructedTomogramHalf1",
        "rlnTomoReconstructedTomogramHalf2",
    }
)
_TOKEN = re.compile(rb"""\s*(?:(["'])(?P<quoted>.*?)\1(?=\s|$)|(?P<comment>\#.*)|(?P<bare>\S+))""")
_SPECIAL_LINE = re.compile(rb"""(?m)^.*["'#].*$""")
_FIRST_ROW = re.compile(rb"\s*([^\n]*)")
_NEXT_BLOCK = re.compile(rb"\n(?:data_\S*|loop_)[ \t\r]*(?:#[^\n]*)?(?=\n|\Z)")
# Stands for an empty quoted value, so that an empty last field always means a short row.
_EMPTY = b"\x02"
# Before 3.1 pandas parses floats exactly only when asked; since then asking is deprecated.
_EXACT_FLOATS: dict[str, str] = (
    {} if tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1) else {"float_precision": "round_trip"}
)


def read_star(path: Path | str) -> dict[str, Block]:
    """Read every block of a STAR file, in the file's order.

    Whole numbers stay integers, decimal numbers become float64 without loss, everything else is text; labels
    that hold names and files are text even where every value looks like a number.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    dict
        Block name without `data_`, to a table or a dictionary. What follows the first table or the first
        pairs inside one block has the key `name#2`, `name#3`, ...

    Raises
    ------
    MissingFileError
        When there is no such file.
    FileFormatError
        When it is not a STAR file, a label comes twice, or a row has too many or too few values.
    """
    path = check_file(path, "STAR file")
    raw = path.read_bytes()
    if b"\0" in raw:
        raise FileFormatError(f"{str(path)!r} is a binary file; expected a STAR file")
    blocks: dict[str, Block] = {}
    block: str | None = None
    key = ""
    position = 0
    while position < len(raw):
        start, end = position, _line_end(raw, position)
        line = raw[start:end].strip()
        position = end + 1
        if not line or line.startswith(b"#"):
            continue
        if line.startswith(b"data_"):
            block = _decode(line.split()[0][5:], path)
            key = _free_key(blocks, block)
            blocks[key] = {}
        elif block is None:
            raise FileFormatError(
                f"{str(path)!r} has text before its first block in line {_line_number(raw, start)}; "
                "expected `data_`"
            )
        elif line.split()[0] == b"loop_":
            key = key if _is_empty(blocks[key]) else _free_key(blocks, block)
            blocks[key], position = _read_loop(raw, position, path, key)
        elif line.startswith(b"_"):
            if isinstance(blocks[key], pd.DataFrame):
                key = _free_key(blocks, block)
                blocks[key] = {}
            _read_pair(line, blocks[key], path, key, raw, start)
        else:
            raise FileFormatError(
                f"{str(path)!r} has a value without a label in line {_line_number(raw, start)} "
                f"of block {key!r}"
            )
    if block is None:
        raise FileFormatError(f"{str(path)!r} holds no data block; expected a STAR file")
    return blocks


def read_table(path: Path | str, block: str | None = None, required: Iterable[str] = ()) -> pd.DataFrame:
    """Read one table of a STAR file.

    Parameters
    ----------
    path
        The file.
    block
        Name without `data_`; none takes the only table of the file.
    required
        Labels that it must have.

    Raises
    ------
    FileFormatError
        When the block is missing or no table, or when one of the required labels is missing.
    """
    blocks = read_star(path)
    if block is None:
        names = [name for name, content in blocks.items() if isinstance(content, pd.DataFrame)]
        if len(names) != 1:
            raise FileFormatError(f"{str(path)!r} holds {len(names)} tables; expected one")
        block = names[0]
    return require_columns(get_table(blocks, block, path), required, path, block)


def get_table(blocks: Mapping[str, Block], block: str, path: Path | str) -> pd.DataFrame:
    """Return a table of a file that was read; pairs count as a table of one row.

    Raises
    ------
    FileFormatError
        When the file has no such block.
    """
    content = blocks.get(block)
    if content is None:
        found = ", ".join(
            repr(name) if name else "one without a name, as RELION 3.0 wrote" for name in blocks
        )
        raise FileFormatError(f"{str(path)!r} has no block {block!r}; it has {found}")
    return content if isinstance(content, pd.DataFrame) else pd.DataFrame([content])


def require_columns(table: pd.DataFrame, names: Iterable[str], path: Path | str, block: str) -> pd.DataFrame:
    """Return `table` when it has all these labels.

    Raises
    ------
    FileFormatError
        When one of them is missing; the message names the file, the block and the labels.
    """
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise FileFormatError(f"block {block!r} of {str(path)!r} lacks {', '.join(missing)}")
    return table


def get_numbers(table: pd.DataFrame, label: str, path: Path | str, block: str) -> npt.NDArray[np.float64]:
    """Return a column as float64.

    Raises
    ------
    FileFormatError
        When the column is missing or holds text.
    """
    require_columns(table, [label], path, block)
    try:
        return table[label].to_numpy(dtype=float)
    except ValueError:
        text = next(value for value in table[label] if not _is_number(value))
        raise FileFormatError(
            f"{label} in block {block!r} of {str(path)!r} must hold numbers; got {text!r}"
        ) from None


def write_star(path: Path | str, blocks: Mapping[str, pd.DataFrame | Mapping[str, Value]]) -> None:
    """Write blocks to a STAR file, in this order.

    Floats are written with as few digits as bring back the same number, values with blanks in quotes.

    Parameters
    ----------
    path
        The file; it appears whole or not at all.
    blocks
        What `read_star` returns: block name to table or pairs. A key `name#2` continues the block before it.

    Raises
    ------
    UserError
        When a value or a name cannot be written in STAR.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for key, content in blocks.items():
            name, _, part = key.partition("#")
            if re.search(r"\s", key):
                raise UserError(f"block name {key!r} of {str(path)!r} must not hold blanks")
            # RELION takes a file without this comment for one of its versions before 3.1.
            file.write(b"\n" if part else f"\n# version 30001\n\ndata_{name}\n\n".encode())
            if isinstance(content, pd.DataFrame):
                _write_loop(file, content, path, key)
            else:
                _write_pairs(file, content, path, key)


def _line_end(raw: bytes, position: int) -> int:
    end = raw.find(b"\n", position)
    return len(raw) if end < 0 else end


def _line_number(raw: bytes, position: int) -> int:
    return raw.count(b"\n", 0, position) + 1


def _decode(text: bytes, path: Path) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise FileFormatError(f"{str(path)!r} is not UTF-8 text; expected a STAR file") from None


def _free_key(blocks: Mapping[str, Block], block: str) -> str:
    key, count = block, 1
    while key in blocks:
        count += 1
        key = f"{block}#{count}"
    return key


def _is_empty(content: Block) -> bool:
    return isinstance(content, dict) and not content


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True


def _is_text(label: str) -> bool:
    return label in _TEXT_LABELS or label.endswith(("Name", "File"))


def _tokens(line: bytes) -> Iterator[bytes]:
    for match in _TOKEN.finditer(line):
        if match["comment"] is not None:
            return
        yield match["bare"] if match["bare"] is not None else match["quoted"]


def _read_pair(line: bytes, pairs: Block, path: Path, block: str, raw: bytes, start: int) -> None:
    tokens = [_decode(token, path) for token in _tokens(line)]
    label = tokens[0][1:]
    if len(tokens) != 2:
        raise FileFormatError(
            f"label {label!r} in line {_line_number(raw, start)} of block {block!r} in {str(path)!r} "
            f"has {len(tokens) - 1} values; expected one"
        )
    if label in pairs:
        raise FileFormatError(f"block {block!r} of {str(path)!r} has the label {label!r} twice")
    pairs[label] = tokens[1] if _is_text(label) else _infer(tokens[1])


def _infer(text: str) -> Value:
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    try:
        return text if "_" in text else float(text)
    except ValueError:
        return text


def _read_loop(raw: bytes, position: int, path: Path, block: str) -> tuple[pd.DataFrame, int]:
    labels: list[str] = []
    while position < len(raw):
        end = _line_end(raw, position)
        line = raw[position:end].strip()
        if line and not line.startswith((b"_", b"#")):
            break
        if line.startswith(b"_"):
            labels.append(_decode(line.split()[0][1:], path))
        position = end + 1
    for label in labels:
        if labels.count(label) > 1:
            raise FileFormatError(f"block {block!r} of {str(path)!r} has the label {label!r} twice")
    # The newline before the body lets an empty table end where it begins.
    found = _NEXT_BLOCK.search(raw, max(position - 1, 0))
    end = found.start() + 1 if found else len(raw)
    return _read_body(raw, position, end, labels, path, block), end


def _read_body(raw: bytes, start: int, end: int, labels: list[str], path: Path, block: str) -> pd.DataFrame:
    first_row = _FIRST_ROW.match(raw, start, end)
    if not labels or first_row is None or not first_row[1]:
        return pd.DataFrame({label: pd.Series(dtype=str if _is_text(label) else float) for label in labels})

    def ragged(line: int, count: int | str) -> FileFormatError:
        return FileFormatError(
            f"line {line} of {str(path)!r} has {count} values; block {block!r} has {len(labels)} labels"
        )

    def requote(match: re.Match[bytes]) -> bytes:
        values = list(_tokens(match[0]))
        if values and len(values) != len(labels):
            raise ragged(_line_number(raw, start + match.start()), len(values))
        return b" ".join(b'"' + (value.replace(b'"', b'""') or _EMPTY) + b'"' for value in values)

    is_special = any(raw.find(mark, start, end) >= 0 for mark in (b'"', b"'", b"#"))
    if is_special:
        body = _SPECIAL_LINE.sub(requote, raw[start:end])
    else:
        body = raw if end == len(raw) else raw[start:end]
        if len(first_row[1].split()) > len(labels):
            raise ragged(_line_number(raw, first_row.start(1)), len(first_row[1].split()))
    offset = start if body is raw else 0
    try:
        table = _parse(body, offset, labels, {label: str for label in labels if _is_text(label)})
        booleans = [label for label in labels if table[label].dtype == bool]
        if booleans:
            table[booleans] = _parse(body, offset, labels, dict.fromkeys(labels, str))[booleans]
    except UnicodeDecodeError:
        raise FileFormatError(f"{str(path)!r} is not UTF-8 text; expected a STAR file") from None
    except pd.errors.ParserError as error:
        place = re.search(r"line (\d+), saw (\d+)", str(error))
        if place is None:
            raise FileFormatError(f"block {block!r} of {str(path)!r} is not a table: {error}") from None
        raise ragged(_line_number(raw, start) + int(place[1]) - 1, int(place[2])) from None
    last = table[labels[-1]]
    if _is_text_column(last) and (last == "").any():
        raise ragged(_short_line(raw, start, end, len(labels)), "too few")
    for label in labels:
        if _is_text_column(table[label]):
            table[label] = _restore(table[label], label, is_special)
    return table


def _parse(body: bytes, offset: int, labels: list[str], text: dict[str, type[str]]) -> pd.DataFrame:
    def parse(low_memory: bool) -> pd.DataFrame:
        stream = io.BytesIO(body)
        stream.seek(offset)
        return pd.read_csv(  # type: ignore[call-overload,no-any-return]
            stream,
            sep=r"\s+",
            names=labels,
            header=None,
            index_col=False,
            dtype=text,
            na_filter=False,
            low_memory=low_memory,
            engine="c",
            **_EXACT_FLOATS,
        )

    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.DtypeWarning)
        try:
            # Parsing by pieces is three times faster, but mixes types where a later piece turns to text.
            return parse(low_memory=True)
        except pd.errors.DtypeWarning:
            return parse(low_memory=False)


def _short_line(raw: bytes, start: int, end: int, count: int) -> int:
    first = _line_number(raw, start)
    for number, line in enumerate(raw[start:end].split(b"\n"), first):
        if 0 < len(list(_tokens(line))) < count:
            return number
    return first


def _is_text_column(column: "pd.Series[Any]") -> bool:
    return not pd.api.types.is_numeric_dtype(column.dtype)


def _restore(column: "pd.Series[Any]", label: str, is_special: bool) -> "pd.Series[Any]":
    """Turn what the parser left as text into what it stands for: empty values and not-a-number."""
    if is_special:
        column = column.replace(_EMPTY.decode(), "")
    if not _is_text(label):
        unknown = column.str.fullmatch(r"[+-]?nan", case=False)
        if unknown.any():
            try:
                return pd.to_numeric(column.mask(unknown)).astype(float)
            except ValueError:
                pass
    return column


def _write_loop(file: BinaryIO, table: pd.DataFrame, path: Path | str, block: str) -> None:
    labels = [str(label) for label in table.columns]
    if len(set(labels)) != len(labels):
        raise UserError(f"block {block!r} of {str(path)!r} has a label twice; expected distinct labels")
    header = "".join(f"_{label} #{number} \n" for number, label in enumerate(labels, 1))
    file.write(f"loop_ \n{header}".encode())
    if len(table) and labels:
        frame = pl.DataFrame(
            [
                _to_polars(label, table.iloc[:, number], number == 0, path, block)
                for number, label in enumerate(labels)
            ]
        )
        frame.write_csv(file, include_header=False, separator=" ", quote_style="never")
    file.write(b"\n")


def _to_polars(label: str, column: "pd.Series[Any]", first: bool, path: Path | str, block: str) -> pl.Series:
    if pd.api.types.is_bool_dtype(column.dtype):
        return pl.Series(label, column.to_numpy(dtype=np.int8))
    if pd.api.types.is_numeric_dtype(column.dtype):
        if isinstance(column.dtype, np.dtype):
            return pl.Series(label, column.to_numpy())
        return pl.Series(label, column.to_numpy(dtype=float, na_value=np.nan))
    if isinstance(column.dtype, pd.StringDtype):
        values = column.fillna("").tolist()
    else:
        values = ["" if value is None or value != value else str(value) for value in column]
    texts = pl.Series(label, values, dtype=pl.String)
    # In the first column a value could be taken for a label or the start of a block.
    pattern = r"""^$|\s|^["'#]""" + (r"|^_|^data_|^loop_" if first else "")
    odd = texts.str.contains(pattern)
    if odd.any():
        quoted = [
            _quote(text, label, path, block) if is_odd else text
            for text, is_odd in zip(texts, odd, strict=True)
        ]
        texts = pl.Series(label, quoted, dtype=pl.String)
    return texts


def _quote(text: str, label: str, path: Path | str, block: str) -> str:
    if "\n" not in text and "\r" not in text:
        for mark in ('"', "'"):
            # A quote ends a value only where a blank follows.
            if not re.search(mark + r"(\s|$)", text):
                return f"{mark}{text}{mark}"
    raise UserError(
        f"value {text!r} of {label!r} in block {block!r} of {str(path)!r} cannot be quoted in STAR; "
        "expected one line without both kinds of quotes"
    )


def _write_pairs(file: BinaryIO, pairs: Mapping[str, Value], path: Path | str, block: str) -> None:
    for label, value in pairs.items():
        if isinstance(value, str):
            text = _quote(value, label, path, block) if re.search(r"""^$|\s|^["'#]""", value) else value
        elif isinstance(value, bool | np.bool_):
            text = str(int(value))
        else:
            text = repr(value.item() if isinstance(value, np.generic) else value)
        file.write(f"_{label:<40} {text} \n".encode())
    file.write(b"\n")
