"""Cross-correlation of images and of volumes.

A correlation map is centred: no shift lies at `n // 2`. A peak at `n // 2 + d` says that the first argument
is the second one moved by d pixels. Correlation is circular; pad or taper the inputs where that matters.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from verglas.errors import UserError
from verglas.shapes import Values


def cross_correlate(a: Values, b: Values, dims: int = 2, weights: Values | None = None) -> Values:
    """Correlation coefficient of two maps for every shift.

    Parameters
    ----------
    a, b
        `(..., y, x)` images or `(..., z, y, x)` volumes; batch dimensions broadcast. Means are taken out.
    dims
        2 for images, 3 for volumes.
    weights
        Real weight for each pixel of the half transform, 0 or more: a band-pass or a missing wedge, say. The
        coefficient is that of the two maps with √weights applied as a filter.

    Returns
    -------
    Tensor
        `(..., y, x)` or `(..., z, y, x)` from -1 to 1; identical maps give 1 at no shift, a constant map 0.

    Raises
    ------
    UserError
        When the shapes of the maps differ.
    """
    shape = _common_shape(a, b, dims)
    first, second = _transform(a, dims), _transform(b, dims)
    weights = torch.ones_like(first.real) if weights is None else weights
    product = first * second.conj() * weights
    norm = _energy(first, weights, shape) * _energy(second, weights, shape)
    return _centred(product, shape) / _positive_root(norm)


def phase_correlate(a: Values, b: Values, dims: int = 2, weights: Values | None = None) -> Values:
    """Correlate phases only: every Fourier pixel counts the same, or as much as its weight.

    Parameters and centring are those of `cross_correlate`.

    Returns
    -------
    Tensor
        Map whose sharp peak is 1 for identical maps (Kuglin & Hines 1975).
    """
    shape = _common_shape(a, b, dims)
    product = _transform(a, dims) * _transform(b, dims).conj()
    size = product.abs()
    # what is zero but for rounding has no phase
    noise = (100 * torch.finfo(size.dtype).eps) ** 2 * size.amax(tuple(range(-dims, 0)), keepdim=True)
    known = size > noise
    phases = torch.where(known, product / size.clamp(min=torch.finfo(size.dtype).tiny), 0)
    weights = known.to(size.dtype) if weights is None else known * weights
    total = _hermitian_sum(weights, shape)
    scale = torch.prod(torch.tensor(shape, dtype=size.dtype, device=size.device))
    return _centred(phases * weights, shape) * scale / total.clamp(min=torch.finfo(size.dtype).tiny)


def local_correlate(map_: Values, template: Values, mask: Values, dims: int = 3) -> Values:
    """Correlation coefficient of a template with the part of a map under a mask, for every position.

    The local mean and variance under the mask are taken out by Fourier convolution (Roseman 2003), so that
    the score does not depend on the density around.

    Parameters
    ----------
    map_
        `(..., y, x)` image or `(..., z, y, x)` tomogram to be searched.
    template
        `(..., y, x)` or `(..., z, y, x)`, at most as large as the map; batch dimensions broadcast.
    mask
        Weights from 0 to 1 of the template's shape.
    dims
        2 or 3.

    Returns
    -------
    Tensor
        Scores from -1 to 1 of the map's shape; the place of a score is that of the template's centre
        `n // 2`. Zero where the map under the mask is flat.

    Raises
    ------
    UserError
        When the template is larger than the map, its shape is not the mask's, or the mask is empty.
    """
    shape = tuple(map_.shape[-dims:])
    small = tuple(template.shape[-dims:])
    if small != tuple(mask.shape[-dims:]) or any(t > m for t, m in zip(small, shape, strict=True)):
        raise UserError(
            f"`template` and `mask` must have one shape that fits into {shape}; got {small} and "
            f"{tuple(mask.shape[-dims:])}"
        )
    axes = tuple(range(-dims, 0))
    mass = mask.sum(axes, keepdim=True)
    if not bool((mass > 0).all()):
        raise UserError("`mask` must have weight somewhere; it is empty")
    mean = (mask * template).sum(axes, keepdim=True) / mass
    deviation = mask * (template - mean)
    template_variance = (deviation * (template - mean)).sum(axes, keepdim=True) / mass
    values = map_ - map_.mean(axes, keepdim=True)
    transform, square = _rfft(values, dims), _rfft(values**2, dims)
    window = _rfft(_embed(mask, shape, dims), dims).conj()
    local_mean = _irfft(transform * window, shape) / mass
    local_variance = _irfft(square * window, shape) / mass - local_mean**2
    covariance = _irfft(transform * _rfft(_embed(deviation, shape, dims), dims).conj(), shape) / mass
    # Below this a variance is the rounding of the Fourier transforms.
    floor = 1e-5 * (values**2).mean(axes, keepdim=True)
    flat: Bool[Tensor, ...] = local_variance <= floor
    scores = covariance / _positive_root(template_variance * torch.where(flat, 1.0, local_variance))
    return torch.where(flat, 0.0, scores).clamp(-1.0, 1.0)


def _common_shape(a: Tensor, b: Tensor, dims: int) -> tuple[int, ...]:
    shape = tuple(a.shape[-dims:])
    if shape != tuple(b.shape[-dims:]) or len(shape) != dims:
        raise UserError(
            f"maps to correlate must have {dims} equal sizes; got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    return shape


def _transform(maps: Tensor, dims: int) -> Tensor:
    return _rfft(maps - maps.mean(tuple(range(-dims, 0)), keepdim=True), dims)


def _rfft(maps: Tensor, dims: int) -> Tensor:
    transform: Tensor = torch.fft.rfftn(maps, dim=tuple(range(-dims, 0)))
    return transform


def _irfft(transform: Tensor, shape: tuple[int, ...]) -> Tensor:
    maps: Tensor = torch.fft.irfftn(transform, s=shape, dim=tuple(range(-len(shape), 0)))
    return maps


def _centred(transform: Tensor, shape: tuple[int, ...]) -> Tensor:
    maps: Tensor = torch.fft.fftshift(_irfft(transform, shape), dim=tuple(range(-len(shape), 0)))
    return maps


def _energy(transform: Tensor, weights: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum of squares, in real space, of maps filtered with √weights."""
    power = _hermitian_sum(weights * (transform.real**2 + transform.imag**2), shape)
    return power / torch.prod(torch.tensor(shape, dtype=power.dtype, device=power.device))


def _hermitian_sum(half: Tensor, shape: tuple[int, ...]) -> Float[Tensor, "..."]:
    """Sum over the whole transform of what is known of its half; kept dimensions."""
    axes = tuple(range(-len(shape), 0))
    alone = half[..., :1].sum(axes, keepdim=True)
    if shape[-1] % 2 == 0:
        alone = alone + half[..., -1:].sum(axes, keepdim=True)
    return 2 * half.sum(axes, keepdim=True) - alone


def _embed(template: Tensor, shape: tuple[int, ...], dims: int) -> Tensor:
    """Put the centre `n // 2` of a template at index 0 of an empty map."""
    sizes = tuple(template.shape[-dims:])
    after = [m - n for m, n in zip(shape, sizes, strict=True)]
    out = pad(template, [side for extra in reversed(after) for side in (0, extra)])
    return out.roll([-(n // 2) for n in sizes], tuple(range(-dims, 0)))


def _positive_root(values: Tensor) -> Tensor:
    return values.clamp(min=torch.finfo(values.dtype).tiny).sqrt()
