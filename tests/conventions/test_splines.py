"""Spline grids mean what Warp's mean: values at the nodes, natural ends, [0, 1] from first to last node."""

import pytest
import starfile
import torch

from verglas.ops.splines import evaluate_spline


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_grids_reproduce_warps_reference_tables(shared_data, rank):
    tables = starfile.read(shared_data / "formats" / "warp" / f"reference{rank}d.star")
    axes = "zyx"[3 - rank :]
    nodes = torch.tensor(tables["grid"][[f"i{axis}" for axis in axes]].to_numpy())
    values = torch.zeros(tuple(nodes.amax(0) + 1), dtype=torch.float64)
    values[tuple(nodes.T)] = torch.tensor(tables["grid"]["value"].to_numpy())
    points = torch.tensor(tables["eval"][list(axes)].to_numpy())
    expected = torch.tensor(tables["eval"]["value"].to_numpy())
    torch.testing.assert_close(evaluate_spline(values, points), expected, atol=2e-6, rtol=0)
    single = evaluate_spline(values.float(), points.float())
    torch.testing.assert_close(single, expected.float(), atol=1e-5, rtol=0)
