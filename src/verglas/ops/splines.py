"""Natural cubic splines on regular grids, as Warp stores motion, defocus and other slow fields.

A grid of n1 x ... x nd node values spans [0, 1] along each axis, first and last node at 0 and 1. The spline
passes through the nodes, and its second derivative is zero at both ends (einspline's NATURAL boundary). An
axis of one node is constant, of two nodes linear. Everything is differentiable in values and points.
"""

from collections.abc import Sequence
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from verglas.errors import UserError
from verglas.shapes import Values


def evaluate_spline(values: Values, points: Float[Tensor, "*points d"]) -> Values:
    """Evaluate a grid at scattered points.

    Parameters
    ----------
    values
        `(..., n1, ..., nd)` node values, leading dimensions (components, say) are batch.
    points
        `(*points, d)` coordinates in [0, 1], in the order of the grid's axes, so x last for a zyx grid.
        Beyond the ends the value at the end holds.

    Returns
    -------
    Tensor
        `(..., *points)`.

    Raises
    ------
    UserError
        When the points have no or more coordinates than the grid has axes.
    """
    rank = points.shape[-1]
    _check_rank(values, rank)
    grid, batch = values.shape[values.ndim - rank :], values.shape[: values.ndim - rank]
    flat = points.to(values.dtype).reshape(-1, rank)
    terms = []
    coefficients = values
    for axis, n in enumerate(grid):
        coefficients = _coefficients_along(coefficients, axis - rank)
        terms.append(_local_weights(flat[:, axis], n))
    sizes = coefficients.shape[len(batch) :]
    coefficients = coefficients.reshape(*batch, -1)
    total = coefficients.new_zeros(*batch, len(flat))
    for steps in product(*[range(weights.shape[-1]) for _, weights in terms]):
        index = torch.zeros(len(flat), dtype=torch.long, device=values.device)
        weight = flat.new_ones(len(flat))
        for (first, weights), size, step in zip(terms, sizes, steps, strict=True):
            index = index * size + first + step
            weight = weight * weights[:, step]
        total = total + coefficients[..., index] * weight
    return total.reshape(*batch, *points.shape[:-1])


def evaluate_spline_on_axes(values: Values, axes: Sequence[Float[Tensor, " _"]]) -> Values:
    """Evaluate a grid on the lattice that one list of coordinates per axis spans: fast for whole images.

    Parameters
    ----------
    values
        `(..., n1, ..., nd)` node values.
    axes
        d tensors of m1, ..., md coordinates in [0, 1].

    Returns
    -------
    Tensor
        `(..., m1, ..., md)`.

    Raises
    ------
    UserError
        When there are no or more axes than the grid has.
    """
    rank = len(axes)
    _check_rank(values, rank)
    for position, coordinates in enumerate(axes):
        axis = position - rank
        matrix = spline_matrix(values.shape[axis], coordinates.to(values.dtype))
        values = torch.tensordot(values, matrix, dims=([axis], [1])).movedim(-1, axis)
    return values


def spline_matrix(nodes: int, coordinates: Float[Tensor, " m"]) -> Float[Tensor, "m n"]:
    """Matrix that takes the node values of one axis to values at `coordinates`.

    Parameters
    ----------
    nodes
        Number n of nodes.
    coordinates
        `(m,)` in [0, 1].

    Returns
    -------
    Tensor
        `(m, n)`.
    """
    first, weights = _local_weights(coordinates, nodes)
    matrix = _coefficient_matrix(nodes, coordinates)
    index = first[:, None] + torch.arange(weights.shape[-1], device=coordinates.device)
    return (weights[..., None] * matrix[index]).sum(1)


def _local_weights(coordinates: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """First coefficient that counts at each coordinate, and the weights of it and the next three."""
    if nodes == 1:
        return torch.zeros_like(coordinates, dtype=torch.long), torch.ones_like(coordinates)[:, None]
    place = coordinates.clamp(0.0, 1.0) * (nodes - 1)
    first = place.detach().floor().clamp(max=nodes - 2).long()
    t = place - first
    # uniform cubic B-spline
    weights = [(1 - t) ** 3, 4 - 3 * t**2 * (2 - t), 1 + 3 * t * (1 + t * (1 - t)), t**3]
    return first, torch.stack(weights, dim=-1) / 6


def _coefficients_along(values: Tensor, axis: int) -> Tensor:
    matrix = _coefficient_matrix(values.shape[axis], values)
    coefficients: Tensor = torch.tensordot(values, matrix, dims=([axis], [1])).movedim(-1, axis)
    return coefficients


def _coefficient_matrix(nodes: int, like: Tensor) -> Tensor:
    """Take n node values to n + 2 B-spline coefficients whose spline interpolates them with natural ends."""
    if nodes == 1:
        return like.new_ones(1, 1)
    system = torch.zeros(nodes + 2, nodes + 2, dtype=torch.float64)
    for offset, weight in enumerate((1 / 6, 4 / 6, 1 / 6)):
        rows = torch.arange(nodes)
        system[rows + 1, rows + offset] = weight
    second_derivative = torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64)
    system[0, :3] = system[-1, -3:] = second_derivative
    inverse: Tensor = torch.linalg.inv(system)
    return inverse[:, 1:-1].to(like)


def _check_rank(values: Tensor, rank: int) -> None:
    if not 1 <= rank <= values.ndim:
        raise UserError(
            f"points of {rank} coordinates do not fit a grid of shape {tuple(values.shape)}; expected 1 to "
            f"{values.ndim} coordinates"
        )
    if 0 in values.shape[values.ndim - rank :]:
        raise UserError(f"a grid needs at least one node along each axis; got shape {tuple(values.shape)}")
