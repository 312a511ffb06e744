"""Defocus, astigmatism and hand of tilt series and micrographs, from their power spectra."""
