"""Tilt series before and during alignment: which views are good, in which order they came, how they lie."""
