"""Gaussian fields whose covariance is known in closed form."""

import numpy as np


def covariance(distance, grain=2.0, broad=12.0):
    """White noise, grain of some pixels, and a slow background."""
    distance = np.asarray(distance, float)
    fine = np.exp(-((distance / grain) ** 2))
    slow = 0.8 * np.exp(-((distance / broad) ** 2))
    return 1.0 * (distance == 0) + fine + slow


def draw_field(shape, seed, grain=2.0, broad=12.0):
    """Sum of white noise and of white noise smoothed by Gaussians, far from any border."""
    rng = np.random.default_rng(seed)
    field = rng.standard_normal(shape)
    for share, width in ((1.0, grain), (0.8, broad)):
        sigma = width / 2  # a kernel of this σ makes exp(-(r / width)²)
        reach = int(5 * sigma) + 1
        steps = np.arange(-reach, reach + 1)
        kernel = np.exp(-0.5 * (steps / sigma) ** 2)
        noise = rng.standard_normal([n + 2 * reach for n in shape])
        noise = np.apply_along_axis(np.convolve, 0, noise, kernel, "valid")
        noise = np.apply_along_axis(np.convolve, 1, noise, kernel, "valid")
        field += np.sqrt(share) * noise / (kernel**2).sum()
    return field


def scatter_places(shape, count, seed, apart):
    """Places xy from the centre, none nearer to another than `apart`."""
    rng = np.random.default_rng(seed)
    places = []
    while len(places) < count:
        place = rng.uniform(-0.5, 0.5, 2) * (np.array(shape[::-1]) - 2 * apart)
        if all(np.linalg.norm(place - other) > apart for other in places):
            places.append(place)
    return np.array(places)
