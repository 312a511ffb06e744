import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

from verglas.errors import UserError
from verglas.ops import splines


def natural(values, axes):
    """Tensor product of SciPy's natural splines."""
    out = values.numpy()
    first = out.ndim - len(axes)
    for axis, x in enumerate(axes):
        n = values.shape[first + axis]
        if n == 1:
            out = np.repeat(out, len(x), axis=first + axis)
        else:
            spline = CubicSpline(np.linspace(0, 1, n), out, axis=first + axis, bc_type="natural")
            out = spline(x.clamp(0, 1).numpy())
    return torch.tensor(out)


@pytest.mark.parametrize(
    "grid", [(1,), (2,), (3,), (9,), (1, 5), (4, 2), (3, 1, 4), (2, 3, 4, 5), (1, 1, 1, 1)]
)
def test_grids_are_products_of_natural_splines(grid):
    generator = torch.Generator().manual_seed(1)
    values = torch.rand((2, *grid), generator=generator, dtype=torch.float64)
    axes = [torch.linspace(-0.1, 1.1, 7 + k, dtype=torch.float64) for k in range(len(grid))]
    expected = natural(values, axes)
    torch.testing.assert_close(splines.evaluate_spline_on_axes(values, axes), expected)
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    torch.testing.assert_close(splines.evaluate_spline(values, points), expected)


def test_splines_pass_through_nodes_and_keep_straight_lines():
    x = torch.linspace(0, 1, 6, dtype=torch.float64)
    values = torch.rand(6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(splines.evaluate_spline(values, x[:, None]), values)
    fine = torch.linspace(0, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(splines.evaluate_spline(3 * x - 1, fine[:, None]), 3 * fine - 1)


def test_gradients_reach_values_and_points():
    generator = torch.Generator().manual_seed(4)
    values = torch.rand(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    points = (torch.rand(5, 2, generator=generator, dtype=torch.float64) * 0.9 + 0.05).requires_grad_()
    assert torch.autograd.gradcheck(splines.evaluate_spline, (values, points))
    axes = [points[:, 0], points[:, 1]]
    assert torch.autograd.gradcheck(lambda v: splines.evaluate_spline_on_axes(v, axes), (values,))


def test_dtype_shape_and_bad_input():
    values = torch.rand(2, 3, 4)
    out = splines.evaluate_spline(values, torch.rand(5, 6, 2, dtype=torch.float64))
    assert out.dtype == torch.float32
    assert out.shape == (2, 5, 6)
    with pytest.raises(UserError, match="points of 4 coordinates do not fit"):
        splines.evaluate_spline(values, torch.rand(5, 4))
    with pytest.raises(UserError, match="points of 0 coordinates do not fit"):
        splines.evaluate_spline_on_axes(values, [])
    with pytest.raises(UserError, match="at least one node"):
        splines.evaluate_spline(torch.rand(2, 0), torch.rand(5, 1))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_device_follows_the_input(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    values, points = torch.rand(3, 4), torch.rand(5, 2)
    out = splines.evaluate_spline(values.to(device), points.to(device))
    assert out.device.type == device
    torch.testing.assert_close(out.cpu(), splines.evaluate_spline(values, points))
    matrix = splines.spline_matrix(4, points[:, 0].to(device))
    torch.testing.assert_close(matrix.cpu(), splines.spline_matrix(4, points[:, 0]))
