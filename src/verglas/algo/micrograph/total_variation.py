"""Total-variation denoising of counts, as Xmipp's `--denoiseTV` does it."""

import math

from verglas.errors import UserError
from verglas.ops.kernels.total_variation import VariationModel, energy_gradient, make_arrays, step_down
from verglas.shapes import Image

_LEVELS = 255.0
_READOUT_SD = 5.8
_WEIGHT = 0.03
_ROUNDNESS = 1e-5
_SHORTEST, _LONGEST = 1e-3, 1e3
_SUFFICIENT = 1e-4


def denoise_variation(image: Image, iterations: int, *, unit_scale: bool = False) -> Image:
    """Smooth an image where it is flat and keep its edges.

    The grey levels are scaled to 0 to 255 and taken for counts x with Poisson noise of gain 1 and readout noise of
    5.8, which the generalised Anscombe transform 2 sqrt(x + 3/8 + 5.8²) turns into noise of variance 1. The image
    is then the one of least squared difference from that plus 0.03 times its total variation, found by spectral
    projected gradients (Birgin, Martínez and Raydan 2000) from the transform itself.

    Parameters
    ----------
    image
        `(y, x)`, outliers removed: they set the scale.
    iterations
        Steps; there is no other end, but that nothing moves.
    unit_scale
        Leave the image between 0 and 1, as Xmipp does; else it returns to its own grey levels.

    Returns
    -------
    Tensor
        `(y, x)`.

    Raises
    ------
    UserError
        When the image is constant, or `iterations` is below one.
    """
    if iterations < 1:
        raise UserError(f"`iterations` must be at least 1; got {iterations}")
    low, high = float(image.min()), float(image.max())
    if not high > low:
        raise UserError(
            f"an image whose pixels are all {low:g} cannot be denoised; expected one with contrast"
        )
    readout = 0.375 + _READOUT_SD**2
    # In double precision, because what the steps do with a rounding error grows with their number.
    seen = 2 * ((image.double() - low) * (_LEVELS / (high - low)) + readout).sqrt()
    top = 2 * math.sqrt(_LEVELS + readout)
    seen /= top
    found = _descend(
        seen, VariationModel(readout / top**2, _LEVELS / top**2, _WEIGHT, _ROUNDNESS), iterations
    )
    return (found if unit_scale else found * (high - low) + low).to(image.dtype)


def _descend(seen: Image, model: VariationModel, iterations: int) -> Image:
    place, trial, gradient, new_gradient = make_arrays(seen, 4)
    place.copy_(seen)
    energy, _, _ = energy_gradient(place, seen, model, place, gradient, gradient)
    length = 1.0
    for _ in range(iterations):
        share = 1.0
        slope = step_down(place, gradient, length, share, trial)
        if slope >= 0:
            break
        new_energy, square, product = energy_gradient(trial, seen, model, place, gradient, new_gradient)
        while new_energy > energy + _SUFFICIENT * share * slope and share > 1e-10:
            # The lowest point of the parabola through what is known, unless it lies too near or too far.
            lowest = -0.5 * share**2 * slope / (new_energy - energy - share * slope)
            share = lowest if 0.1 <= lowest <= 0.9 * share else share / 2
            step_down(place, gradient, length, share, trial)
            new_energy, square, product = energy_gradient(trial, seen, model, place, gradient, new_gradient)
        length = _LONGEST if product <= 0 else min(max(square / product, _SHORTEST), _LONGEST)
        place, trial, gradient, new_gradient = trial, place, new_gradient, gradient
        energy = new_energy
    return place
