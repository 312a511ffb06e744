"""Particles of tilt series: cut from the views, averaged, and aligned to references."""
