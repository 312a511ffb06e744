"""Membranes in images: a curve, a profile across it, and how strong it is along it."""
