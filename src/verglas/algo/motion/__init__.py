"""Beam-induced motion: found in the frames of a movie and taken out of them."""
