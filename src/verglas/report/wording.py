"""Values in the words of the field."""

from datetime import datetime
from typing import Any

# Suffixes of names, and the unit they stand for.
_UNITS = {
    "_e_per_a2": "e/Å²",
    "_angstrom": "Å",
    "_percent": "%",
    "_seconds": "s",
    "_pixels": "px",
    "_bytes": "bytes",
    "_deg": "°",
    "_kv": "kV",
    "_mm": "mm",
}


def heading_of(name: str) -> str:
    """Turn `mean_defocus_angstrom` into `mean defocus / Å`."""
    for suffix, unit in _UNITS.items():
        if name.endswith(suffix) and name != suffix[1:]:
            return f"{name.removesuffix(suffix).replace('_', ' ')} / {unit}"
    return name.replace("_", " ")


def format_value(value: Any) -> str:
    """Write a value for people: four digits of numbers, sizes with a cross, nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _format_number(value)
    if isinstance(value, list):
        numbers = all(isinstance(item, int | float) for item in value)
        return (" × " if numbers and 2 <= len(value) <= 3 else ", ").join(map(format_value, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {format_value(item)}" for name, item in value.items())
    return str(value)


def _format_number(value: float) -> str:
    if abs(value) < 1e15 and value == int(value):
        text = f"{int(value):,}"
    elif 1000 <= abs(value) < 1e15:
        text = f"{value:,.1f}"
    else:
        text = f"{value:.4g}"
    return text.replace(",", "\N{NARROW NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")


def describe_value(value: Any) -> str:
    """Write a parameter as the user would write it."""
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(describe_value, value)) or "none"
    return str(value)


def describe_moment(moment: str) -> str:
    """Write an ISO time for people: `21 Nov 2026, 11:29`."""
    return datetime.fromisoformat(moment).strftime("%-d %b %Y, %H:%M") if moment else "not finished"
