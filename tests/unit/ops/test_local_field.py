"""Local fields: the spline passes its nodes, and an image that was displaced comes back."""

import numpy as np
import pytest
import torch

from verglas.ops.local_field import evaluate_field, undo_field

LOW, HIGH = (-300.0, -200.0), (300.0, 200.0)


def test_the_spline_passes_its_nodes_and_holds_beyond():
    nodes = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, x = torch.meshgrid(torch.linspace(-200, 200, 4), torch.linspace(-300, 300, 5), indexing="ij")
    places = torch.stack([x, y], dim=-1).double()
    assert torch.allclose(evaluate_field(nodes, LOW, HIGH, places), nodes)
    far = torch.tensor([[-900.0, 900.0], [900.0, -900.0]], dtype=torch.float64)
    assert torch.allclose(evaluate_field(nodes, LOW, HIGH, far), torch.stack([nodes[-1, 0], nodes[0, -1]]))


def test_one_node_holds_everywhere():
    nodes = torch.tensor([[[1.5, -2.0]]], dtype=torch.float64)
    found = evaluate_field(nodes, LOW, HIGH, torch.randn(7, 2, dtype=torch.float64) * 500)
    assert torch.allclose(found, nodes[0, 0].expand(7, 2))


@pytest.mark.parametrize("angle", [0.0, 70.0])
def test_a_displaced_image_comes_back(angle):
    """Blobs seen through an analytic field over a turned and shortened plane."""
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    forward = np.array([[cos, -sin], [sin, cos]]) @ np.diag([0.6, 1.0])
    back, shift, pixel = np.linalg.inv(forward), np.array([30.0, -20.0]), (10.0, 8.0)
    blobs = np.random.default_rng(0).uniform(-1, 1, (60, 2)) * [300, 200] @ forward.T + shift

    def bend(xy):
        return np.stack([25 * (xy[..., 0] / 300) ** 2, 15 * xy[..., 0] * xy[..., 1] / 60000], axis=-1)

    def draw(places):
        squares = ((places[:, :, None] - blobs) ** 2).sum(axis=-1)
        return torch.from_numpy(np.exp(-squares / 800).sum(axis=-1).astype(np.float32))

    rows, columns = np.mgrid[:120, :90]
    seen = np.stack([(columns - 45) * pixel[0], (rows - 60) * pixel[1]], axis=-1)
    # What the displaced image shows at u + s(u) is what the true one shows at u.
    source = seen
    for _ in range(60):
        plane = ((source - shift) @ back.T).clip(LOW, HIGH)
        source = seen - bend(plane)
    y, x = np.meshgrid(np.linspace(-200, 200, 9), np.linspace(-300, 300, 9), indexing="ij")
    nodes = torch.from_numpy(bend(np.stack([x, y], axis=-1)))
    to_plane = torch.from_numpy(np.column_stack([back, -back @ shift]))
    truth, moved = draw(seen), draw(source)
    found = undo_field(moved, nodes, LOW, HIGH, to_plane, pixel)
    before, after = (float((image - truth).square().mean().sqrt()) for image in (moved, found))
    assert after < 0.05 * before
