"""Which operations are done to a micrograph, in their fixed order."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from verglas.algo.micrograph import operations
from verglas.algo.micrograph.denoiser import Denoiser, denoise_image
from verglas.algo.micrograph.total_variation import denoise_variation
from verglas.errors import UserError
from verglas.shapes import Values


@dataclass(frozen=True)
class Cutoff:
    """A length or a frequency of a filter, in pixels or in Å.

    Parameters
    ----------
    value
        As the filter takes it.
    is_angstrom
        Whether it is in Å, and not in pixels of the image as it is when the filter comes.
    """

    value: float
    is_angstrom: bool = False

    def as_length(self, pixel_size_angstrom: float) -> float:
        """In pixels."""
        return self.value / pixel_size_angstrom if self.is_angstrom else self.value

    def as_frequency(self, pixel_size_angstrom: float) -> float:
        """In 1/pixel; one in Å is a resolution."""
        return pixel_size_angstrom / self.value if self.is_angstrom else self.value


@dataclass(frozen=True)
class Recipe:
    """Operations in their order; what is none is left out.

    Parameters
    ----------
    crop
        Pixels off each side.
    logarithm
        a, b and c of a - b ln(x + c).
    bad_pixels
        Standard deviations from the mean beyond which a pixel is bad.
    invert
        Change the sign.
    downsample
        Factor on the pixel size.
    denoise
        Iterations of total-variation denoising.
    denoiser
        A network that does it in its place.
    gaussian
        Standard deviation of a blur.
    highpass, highpass_width
        Frequency from which everything passes, and over how many 1/pixel below it the filter falls.
    lowpass, lowpass_width
        Frequency up to which everything passes, and over how many 1/pixel above it the filter falls.
    normalise
        Mean 0 and standard deviation 1.
    as_xmipp
        Do what Xmipp's programs do where that differs from their labels.
    """

    crop: int | None = None
    logarithm: tuple[float, float, float] | None = None
    bad_pixels: float | None = None
    invert: bool = False
    downsample: float | None = None
    denoise: int | None = None
    denoiser: Denoiser | None = None
    gaussian: Cutoff | None = None
    highpass: Cutoff | None = None
    highpass_width: float = 0.001
    lowpass: Cutoff | None = None
    lowpass_width: float = 0.001
    normalise: bool = False
    as_xmipp: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of what is done, in its order."""
        order = ["crop", "logarithm", "bad_pixels", "invert", "downsample", "denoise", "denoiser"]
        order += ["gaussian", "highpass", "lowpass", "normalise"]
        return tuple(name for name in order if getattr(self, name) not in (None, False))


@dataclass(frozen=True, eq=False)
class Processed:
    """A micrograph that was worked on.

    Parameters
    ----------
    image
        `(y, x)` float64.
    pixel_size_angstrom
        Its true one.
    bad_pixels
        How many were replaced.
    notes
        What the user should know.
    """

    image: Values
    pixel_size_angstrom: float
    bad_pixels: int = 0
    notes: tuple[str, ...] = field(default=())


def process_micrograph(image: Values, pixel_size_angstrom: float, recipe: Recipe) -> Processed:
    """Do the operations of a recipe.

    Filters wrap around, as Xmipp's do, and do not pad. All is done in double precision: in single precision the
    logarithm and the filters would lose contrast beside a large mean.

    Parameters
    ----------
    image
        `(y, x)`.
    pixel_size_angstrom
        Å.
    recipe
        What to do.

    Raises
    ------
    UserError
        When an operation cannot be done to this image.
    """
    pixel, bad = pixel_size_angstrom, 0
    notes: list[str] = []
    work: Tensor = image.double()
    if recipe.crop:
        work = operations.crop_borders(work, recipe.crop)
    if recipe.logarithm is not None:
        work = operations.take_logarithm(work, *recipe.logarithm)
    if recipe.bad_pixels is not None:
        work, bad = operations.remove_bad_pixels(work, recipe.bad_pixels)
    if recipe.invert:
        work = -work
    if recipe.downsample is not None:
        work, factor = operations.downsample(work, recipe.downsample, as_xmipp=recipe.as_xmipp)
        pixel *= factor
    if recipe.denoise is not None:
        work = denoise_variation(work, recipe.denoise, unit_scale=recipe.as_xmipp)
    if recipe.denoiser is not None:
        work = denoise_image(work, recipe.denoiser, pixel, sign=_find_sign(recipe))
    transfer = _multiply_filters((work.shape[0], work.shape[1]), pixel, recipe, notes)
    if transfer is not None:
        work = operations.filter_image(work, transfer)
    if recipe.normalise:
        work = operations.normalise(work)
    return Processed(work, pixel, bad, tuple(notes))


def _find_sign(recipe: Recipe) -> int:
    """-1 where the operations before the denoiser turn what is dark to bright."""
    falls = recipe.logarithm is not None and recipe.logarithm[1] > 0
    return -1 if falls != recipe.invert else 1


def _multiply_filters(
    shape: tuple[int, int], pixel: float, recipe: Recipe, notes: list[str]
) -> Tensor | None:
    """Make one transfer function of the filters that follow each other."""
    transfers = []
    if recipe.gaussian is not None:
        sigma = recipe.gaussian.as_length(pixel)
        transfers.append(operations.gaussian_transfer(shape, sigma, as_xmipp=recipe.as_xmipp))
    if recipe.highpass is not None:
        cutoff = _check_frequency("highpass", recipe.highpass, pixel)
        transfers.append(operations.highpass_transfer(shape, cutoff, recipe.highpass_width))
    if recipe.lowpass is not None:
        cutoff = _check_frequency("lowpass", recipe.lowpass, pixel)
        if cutoff >= 0.5:
            notes.append(f"a low-pass at {cutoff:.3g} per pixel lies beyond Nyquist along the axes")
        transfers.append(operations.lowpass_transfer(shape, cutoff, recipe.lowpass_width))
    if not transfers:
        return None
    return torch.stack(transfers).prod(dim=0) if len(transfers) > 1 else transfers[0]


def _check_frequency(name: str, cutoff: Cutoff, pixel: float) -> float:
    frequency = cutoff.as_frequency(pixel)
    if not 0 < frequency <= 0.7072:
        raise UserError(
            f"`{name}` at {cutoff.value:g} {'Å' if cutoff.is_angstrom else 'per pixel'} is {frequency:.4g} per "
            f"pixel of {pixel:g} Å; expected more than 0 and at most 0.7071"
        )
    return frequency
