"""emClarity's parameter file: `name=value` lines whose values are small MATLAB expressions.

Expressions are read by a parser of their own, never run as code: numbers, + - * / ^ and their elementwise
forms, `[a,b;c,d]`, ranges `a:b` and `a:step:b`, `'` for the transpose, `ones(n,m)` and `zeros(n,m)`.
"""

import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from verglas.errors import FileFormatError, UserError
from verglas.files import write_text
from verglas.io.number_table import read_text

FloatArray = npt.NDArray[np.float64]
Parameter = float | str | FloatArray
"""A word, a number, a row `(n,)` or a matrix `(rows, columns)`."""

TEXT_PARAMETERS = frozenset(
    {
        "subTomoMeta",
        "Ali_mType",
        "Cls_mType",
        "Raw_mType",
        "Fsc_mType",
        "Peak_mType",
        "Pca_distMeasure",
        "Pca_symMask",
        "Kms_mType",
        "flgPrecision",
        "Tmp_xcfScale",
        "fastScratchDisk",
        "Tmp_eraseMaskType",
        "startingDirection",
        "symmetry",
    }
)
"""Names whose values are words."""

_NAME = re.compile(r"[A-Za-z]\w*")
_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<number>(?:\d+(?:\.(?![*/^])\d*)?|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z]\w*)|(?P<sign>\.[*/^]|[-+*/^:;,'()\[\]])"
)
_CONSTANTS = {"pi": np.pi, "true": 1.0, "false": 0.0, "inf": np.inf, "Inf": np.inf}
_MAX_ELEMENTS = 1_000_000
_MAX_DEPTH = 40
_MAX_LENGTH = 20_000


def read_parameters(path: Path | str) -> dict[str, Parameter]:
    """Read a parameter file, in its order.

    Raises
    ------
    MissingFileError
        When there is no such file.
    FileFormatError
        When lines are wrong; the message has one sentence for each of them.
    """
    parameters: dict[str, Parameter] = {}
    faults = []
    for number, line in enumerate(read_text(path, "parameter file").splitlines(), start=1):
        text = line.partition("%")[0].strip()
        if not text:
            continue
        try:
            name, value = _parse_line(text, parameters)
            parameters[name] = value
        except UserError as error:
            faults.append(f"line {number} of parameter file {str(path)!r}: {error}")
    if faults:
        raise FileFormatError("\n".join(faults))
    return parameters


def write_parameters(path: Path | str, parameters: Mapping[str, Parameter]) -> None:
    """Write a parameter file that `read_parameters` reads back to the same values."""
    write_text(path, "".join(f"{name}={_format(value)}\n" for name, value in parameters.items()))


def evaluate(expression: str) -> float | FloatArray:
    """Evaluate a MATLAB expression of numbers.

    Parameters
    ----------
    expression
        The text.

    Returns
    -------
    float or ndarray
        A number, a row `(n,)`, or a matrix `(rows, columns)`; an empty matrix is `(0,)`.

    Raises
    ------
    UserError
        When it cannot be read, or has a value that is too large or no number.
    """
    if len(expression) > _MAX_LENGTH:
        raise UserError(f"the expression has {len(expression)} letters; expected at most {_MAX_LENGTH}")
    parser = _Parser(expression)
    with np.errstate(all="ignore"):
        value = parser.read_range()
    parser.expect_end()
    if np.isnan(value).any():
        raise UserError(f"{expression[:60]!r} has a value that is not a number")
    if value.size == 1:
        return float(value[0, 0])
    return value[0] if value.shape[0] == 1 else value if value.size else np.empty(0)


def _parse_line(text: str, taken: Container[str]) -> tuple[str, Parameter]:
    name, *rest = (part.strip() for part in text.split("="))
    if len(rest) != 1:
        raise UserError(f"{text[:60]!r} has {len(rest)} signs '='; expected one, as in name=value")
    if not _NAME.fullmatch(name):
        raise UserError(f"{name[:60]!r} is not a name of letters, digits and underscores")
    if name in taken:
        raise UserError(f"{name} is given a second time")
    value = rest[0].removesuffix(";").strip()
    if name in TEXT_PARAMETERS:
        return name, value.strip("'\"")
    if not value:
        raise UserError(f"{name} has no value")
    return name, evaluate(value)


def _format(value: Parameter) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return _number_text(float(value))
    rows = np.atleast_2d(value)
    return f"[{';'.join(','.join(map(_number_text, row)) for row in rows)}]" if rows.size else "[]"


def _number_text(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


class _Token(NamedTuple):
    kind: str
    text: str
    space_before: bool
    space_after: bool


class _Parser:
    """Recursive descent over one expression; every value is a matrix."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = self.split(text)
        self.position = 0
        self.depth = 0
        self.brackets = 0

    @staticmethod
    def split(text: str) -> list[_Token]:
        found: list[tuple[str, str, bool]] = []
        position, space = 0, False
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise UserError(f"{text[:60]!r} has {text[position]!r}, which no expression may have")
            position = match.end()
            if match.lastgroup != "space":
                found.append((str(match.lastgroup), match.group(), space))
            space = match.lastgroup == "space"
        after = [*(item[2] for item in found[1:]), True][: len(found)]
        return [_Token(*item, spaced) for item, spaced in zip(found, after, strict=True)]

    def peek(self) -> _Token:
        return (
            self.tokens[self.position] if self.position < len(self.tokens) else _Token("end", "", True, True)
        )

    def accept(self, *signs: str) -> str | None:
        token = self.peek()
        if token.kind != "sign" or token.text not in signs:
            return None
        self.position += 1
        return token.text

    def fail(self) -> UserError:
        token = self.peek()
        place = "ends too early" if token.kind == "end" else f"cannot go on with {token.text[:20]!r}"
        return UserError(f"{self.text[:60]!r} {place}")

    def expect(self, sign: str) -> None:
        if self.accept(sign) is None:
            raise self.fail()

    def expect_end(self) -> None:
        if self.peek().kind != "end":
            raise self.fail()

    def starts_element(self) -> bool:
        """Whether blanks inside brackets end an element here: `[1 -2]` has two, `[1 - 2]` and `[1-2]` one."""
        token = self.peek()
        return self.brackets > 0 and token.space_before and not token.space_after

    def read_range(self) -> FloatArray:
        parts = [self.read_sum()]
        while len(parts) < 3 and self.accept(":"):
            parts.append(self.read_sum())
        if len(parts) == 1:
            return parts[0]
        first, last = self.scalar(parts[0]), self.scalar(parts[-1])
        step = self.scalar(parts[1]) if len(parts) == 3 else 1.0
        count = np.floor((last - first) / step + 1e-10) + 1 if step else 0.0
        self.check_size(max(count, 0.0))
        return np.asarray(first + step * np.arange(max(int(count), 0)), dtype=np.float64)[None]

    def read_sum(self) -> FloatArray:
        value = self.read_product()
        while not self.starts_element() and (sign := self.accept("+", "-")):
            other = self.read_product()
            value = self.combine(np.add if sign == "+" else np.subtract, value, other)
        return value

    def read_product(self) -> FloatArray:
        value = self.read_signed()
        while sign := self.accept("*", "/", ".*", "./"):
            other = self.read_signed()
            if sign == "*" and 1 not in {value.size, other.size}:
                if value.shape[1] != other.shape[0]:
                    raise UserError(f"{self.text[:60]!r} multiplies {value.shape} by {other.shape}")
                self.check_size(value.shape[0] * other.shape[1])
                value = np.asarray(value @ other, dtype=np.float64)
            elif sign == "/" and other.size != 1:
                raise UserError(f"{self.text[:60]!r} divides by a matrix; expected ./ for each element")
            else:
                value = self.combine(np.multiply if "*" in sign else np.divide, value, other)
        return value

    def read_signed(self) -> FloatArray:
        self.descend()
        sign = self.accept("+", "-")
        value = self.read_signed() if sign else self.read_power()
        self.depth -= 1
        return -value if sign == "-" else value

    def read_power(self) -> FloatArray:
        value = self.read_transposed()
        while sign := self.accept("^", ".^"):
            minus = self.accept("+", "-")
            exponent = self.read_transposed()
            if sign == "^" and not value.size == exponent.size == 1:
                raise UserError(f"{self.text[:60]!r} takes a power of a matrix; expected .^ for each element")
            value = self.combine(np.power, value, -exponent if minus == "-" else exponent)
        return value

    def read_transposed(self) -> FloatArray:
        value = self.read_atom()
        while not (self.brackets > 0 and self.peek().space_before) and self.accept("'"):
            value = value.T
        return value

    def read_atom(self) -> FloatArray:
        token = self.peek()
        self.descend()
        if token.kind == "number":
            self.position += 1
            value = np.array([[float(token.text)]])
        elif token.kind == "name":
            self.position += 1
            value = self.read_name(token.text)
        elif self.accept("("):
            outer, self.brackets = self.brackets, 0
            value = self.read_range()
            self.expect(")")
            self.brackets = outer
        elif self.accept("["):
            self.brackets += 1
            value = self.read_matrix()
            self.brackets -= 1
        else:
            raise self.fail()
        self.depth -= 1
        return value

    def read_name(self, name: str) -> FloatArray:
        if name in _CONSTANTS:
            return np.array([[_CONSTANTS[name]]])
        if name not in {"ones", "zeros"}:
            raise UserError(
                f"{self.text[:60]!r} has the name {name[:40]!r}; expected ones, zeros, or a number"
            )
        self.expect("(")
        outer, self.brackets = self.brackets, 0
        sizes = [self.scalar(self.read_range())]
        while self.accept(","):
            sizes.append(self.scalar(self.read_range()))
        self.expect(")")
        self.brackets = outer
        if len(sizes) > 2 or any(size < 0 or size != int(size) for size in sizes if np.isfinite(size)):
            raise UserError(
                f"{self.text[:60]!r} asks for {name} of {sizes}; expected one or two whole numbers"
            )
        rows, columns = sizes * 2 if len(sizes) == 1 else sizes
        self.check_size(max(rows, 1.0) * max(columns, 1.0))
        return np.full((int(rows), int(columns)), float(name == "ones"))

    def read_matrix(self) -> FloatArray:
        rows: list[list[FloatArray]] = [[]]
        while self.accept("]") is None:
            if self.accept(";"):
                rows.append([])
                continue
            rows[-1].append(self.read_range())
            if self.accept(","):
                continue
            token = self.peek()
            if token.text not in {";", "]"} and not token.space_before:
                raise self.fail()
        parts = [row for row in rows if row]
        if not parts:
            return np.empty((0, 0))
        self.check_size(sum(part.size for row in parts for part in row))
        try:
            return np.concatenate([np.concatenate(row, axis=1) for row in parts], axis=0)
        except ValueError:
            raise UserError(f"{self.text[:60]!r} has rows of different lengths") from None

    def combine(self, operation: np.ufunc, left: FloatArray, right: FloatArray) -> FloatArray:
        if left.shape != right.shape and 1 not in {left.size, right.size}:
            raise UserError(f"{self.text[:60]!r} combines {left.shape} with {right.shape}")
        return np.asarray(operation(left, right), dtype=np.float64)

    def scalar(self, value: FloatArray) -> float:
        if value.size != 1 or not np.isfinite(value).all():
            raise UserError(f"{self.text[:60]!r} has {value.shape} where one finite number is expected")
        return float(value[0, 0])

    def check_size(self, count: float) -> None:
        if not count <= _MAX_ELEMENTS:
            raise UserError(f"{self.text[:60]!r} makes {count:.3g} values; expected at most {_MAX_ELEMENTS}")

    def descend(self) -> None:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise UserError(f"{self.text[:60]!r} is nested more than {_MAX_DEPTH // 2} deep")
