"""Rules such as `ctf_fit_resolution < 6 and not (drift > 40 or name == "TS_03")`, read and applied without `eval`."""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from verglas.errors import UserError

Scalar = float | str | None
Test = Callable[[Mapping[str, Scalar]], bool]

_TOKEN = re.compile(
    r"\s*(?:(<=|>=|==|!=|<|>|\(|\))|(-?\d+\.?\d*(?:[eE][-+]?\d+)?)|([A-Za-z_]\w*)|\"([^\"]*)\"|'([^']*)')"
)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True)
class Rule:
    """A rule that was read.

    Parameters
    ----------
    text
        As it was written.
    names
        The values that it asks for, in order.
    test
        Tells whether an item's values fulfil it; a comparison with a value that an item lacks is not fulfilled.
    """

    text: str
    names: tuple[str, ...]
    test: Test


def parse_rule(text: str) -> Rule:
    """Read a rule: comparisons of names, numbers and quoted words by < <= > >= == !=, joined by and, or, not, ().

    Raises
    ------
    UserError
        When it is no rule; the sentence says where.
    """
    parser = _Parser(text)
    test = parser.either()
    if parser.place < len(parser.tokens):
        parser.fail("the end, `and` or `or`")
    return Rule(text, tuple(dict.fromkeys(parser.names)), test)


class _Parser:
    """Recursive descent: `or` binds weaker than `and`, and that weaker than `not`."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0
        self.names: list[str] = []
        self.tokens: list[tuple[str, str | float]] = []
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                raise UserError(f"rule {text!r} has {text[at:].strip()[0]!r}, which no rule can have")
            sign, number, word, *quoted = match.groups()
            if sign:
                self.tokens.append(("sign", sign))
            elif number:
                self.tokens.append(("number", float(number)))
            elif word:
                self.tokens.append(("word" if word in {"and", "or", "not"} else "name", word))
            else:
                self.tokens.append(("text", next(one for one in quoted if one is not None)))
            at = match.end()

    def fail(self, expected: str) -> None:
        rest = self.tokens[self.place :]
        found = f"{rest[0][1]!r}" if rest else "the end"
        raise UserError(f"rule {self.text!r} has {found} as its part {self.place + 1}; expected {expected}")

    def accept(self, *tokens: tuple[str, str]) -> bool:
        if self.place < len(self.tokens) and self.tokens[self.place] in tokens:
            self.place += 1
            return True
        return False

    def either(self) -> Test:
        parts = [self.both()]
        while self.accept(("word", "or")):
            parts.append(self.both())
        return parts[0] if len(parts) == 1 else lambda values: any(part(values) for part in parts)

    def both(self) -> Test:
        parts = [self.single()]
        while self.accept(("word", "and")):
            parts.append(self.single())
        return parts[0] if len(parts) == 1 else lambda values: all(part(values) for part in parts)

    def single(self) -> Test:
        if self.accept(("word", "not")):
            inner = self.single()
            return lambda values: not inner(values)
        if self.accept(("sign", "(")):
            inner = self.either()
            if not self.accept(("sign", ")")):
                self.fail("a closing parenthesis")
            return inner
        left = self.operand()
        sign = self.tokens[self.place][1] if self.place < len(self.tokens) else None
        if sign not in _COMPARE:
            self.fail("one of < <= > >= == !=")
        self.place += 1
        compare, right = _COMPARE[str(sign)], self.operand()

        def test(values: Mapping[str, Scalar]) -> bool:
            first, second = left(values), right(values)
            if first is None or second is None or isinstance(first, str) != isinstance(second, str):
                return False
            return compare(first, second)

        return test

    def operand(self) -> Callable[[Mapping[str, Scalar]], Scalar]:
        kind, value = self.tokens[self.place] if self.place < len(self.tokens) else ("end", "")
        if kind not in {"name", "number", "text"}:
            self.fail("a name, a number or a word in quotes")
        self.place += 1
        if kind == "name":
            name = str(value)
            self.names.append(name)
            return lambda values: values.get(name)
        return lambda _: value
