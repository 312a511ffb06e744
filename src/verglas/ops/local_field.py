"""Local fields: shifts of a view that vary over the specimen."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate as resize

from verglas.ops.kernels.interpolate import read_places, spline_coefficients
from verglas.ops.splines import evaluate_spline
from verglas.shapes import Values

_CELL = 4
"""A field is evaluated at every so many pixels, and linear between."""

_ROWS = 128


def evaluate_field(
    nodes: Float[Tensor, "nodes_y nodes_x 2"],
    low: tuple[float, float],
    high: tuple[float, float],
    places: Float[Tensor, "*places 2"],
) -> Float[Tensor, "*places 2"]:
    """Evaluate the natural cubic spline through evenly spaced nodes; beyond them the outermost value holds.

    Parameters
    ----------
    nodes
        Shifts xy at the nodes.
    low, high
        xy of the first and the last node.
    places
        xy where it is wanted.

    Returns
    -------
    Tensor
        `(*places, 2)` shifts xy.
    """
    first, last = places.new_tensor(low), places.new_tensor(high)
    fractions = ((places - first) / (last - first)).flip(-1)
    return evaluate_spline(nodes.to(places.dtype).movedim(-1, 0), fractions).movedim(0, -1)


def undo_field(
    image: Float[Tensor, "y x"],
    nodes: Float[Tensor, "nodes_y nodes_x 2"],
    low: tuple[float, float],
    high: tuple[float, float],
    to_plane: Values,
    pixel_size: tuple[float, float],
) -> Float[Tensor, "y x"]:
    """Move what a view shows of the plane z = 0 back to where the geometry alone would show it, by cubic B-splines.

    What lies higher or lower is moved with what the view shows at the same place of the plane; a height h is seen
    h tan(tilt) away from its own column.

    Parameters
    ----------
    image
        `(y, x)` the view.
    nodes, low, high
        Of the field, see :func:`evaluate_field`; lengths in units of `pixel_size`.
    to_plane
        `(2, 3)` takes xy1 of the image, from its centre, to xy of the plane z = 0.
    pixel_size
        xy.

    Returns
    -------
    Tensor
        `(y, x)`; what would come from outside is what the edge holds.
    """
    height, width = image.shape
    lattice = [torch.linspace(0, n - 1, max(2, -(-n // _CELL)), dtype=torch.float64) for n in (height, width)]
    y, x = torch.meshgrid(*lattice, indexing="ij")
    seen = torch.stack([(x - width // 2) * pixel_size[0], (y - height // 2) * pixel_size[1]], dim=-1)
    matrix = to_plane.to(torch.float64).cpu()
    shifts = evaluate_field(nodes.cpu(), low, high, seen @ matrix[:, :2].T + matrix[:, 2])
    shifts = shifts / shifts.new_tensor(pixel_size)
    moves = resize(shifts.movedim(-1, 0)[None], (height, width), mode="bilinear", align_corners=True)[0]
    moves = moves.to(image.device)
    coefficients = spline_coefficients(image[None], dims=2)
    result = torch.empty_like(image)
    columns = torch.arange(width, dtype=torch.float64, device=image.device)
    for start in range(0, height, _ROWS):
        rows = torch.arange(start, min(start + _ROWS, height), dtype=torch.float64, device=image.device)
        part = slice(start, start + len(rows))
        row = (rows[:, None] + moves[1, part]).clamp(0, height - 1)
        column = (columns + moves[0, part]).clamp(0, width - 1)
        places = torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3)
        result[part] = read_places(coefficients, places, cubic=True, fill=0.0).reshape(row.shape)
    return result
