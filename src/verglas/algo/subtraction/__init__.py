"""Projections of a part of a map taken out of particle images, and whether that worked."""
