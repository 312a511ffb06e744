"""`fiducials train` in few steps on small data, and what it refuses."""

import json

import numpy as np
import pytest

from verglas.errors import UserError
from verglas.io.mrc import write_mrc
from verglas.io.network_weights import read_weights
from verglas.steps.step import RunOptions, run_step
from verglas.steps.train_fiducials import TRAIN_FIDUCIALS_STEP, TrainFiducialsParams

QUIET = RunOptions(quiet=True)


def run(folder, **changes):
    params = TrainFiducialsParams(**({"steps": 3, "scenes": 4} | changes))
    return run_step(TRAIN_FIDUCIALS_STEP, params, folder, options=QUIET)


@pytest.fixture
def handmade(tmp_path):
    """Six views at 10 Å with a dark square that is contamination."""
    rng = np.random.default_rng(0)
    views = rng.normal(100, 5, (6, 300, 280)).astype(np.float32)
    masks = np.zeros(views.shape, np.int8)
    masks[:, 100:200, 60:160] = 2
    views[masks == 2] -= 40
    write_mrc(tmp_path / "views.mrc", views, voxel_size_angstrom=10.0, is_stack=True)
    write_mrc(tmp_path / "masks.mrc", masks, voxel_size_angstrom=10.0, is_stack=True, dtype=np.int8)
    return tmp_path


def test_training_writes_weights_and_scores_and_comes_again(tmp_path, monkeypatch):
    monkeypatch.setattr("verglas.steps.train_fiducials._JUDGED", 6)
    for name in ("one", "other"):
        assert run(tmp_path / name).failed == {}
    weights = [(tmp_path / name / "weights.npz").read_bytes() for name in ("one", "other")]
    assert weights[0] == weights[1]
    values = json.loads((tmp_path / "one/items/network.json").read_text())["values"]
    assert values["steps"] == 3
    assert {f"{kind}_overlap" for kind in ("gold", "contamination", "carbon", "bar")} <= set(values)
    summary = json.loads((tmp_path / "one/summary.json").read_text())
    assert [figure["path"] for figure in summary["figures"]] == [
        "figures/training.png",
        "figures/examples.png",
    ]


def test_masks_by_hand_are_learned_from_the_shipped_weights_on(handmade, tmp_path, monkeypatch):
    monkeypatch.setattr("verglas.steps.train_fiducials._JUDGED", 6)
    images = (handmade / "views.mrc",)
    masks = (handmade / "masks.mrc",)
    report = run(tmp_path / "out", images=images, masks=masks, steps=8, scenes=0)
    assert report.failed == {}
    values = json.loads((tmp_path / "out/items/network.json").read_text())["values"]
    assert values["contamination_overlap_handmade"] > 0.6
    # And on from those.
    again = run(tmp_path / "on", weights=tmp_path / "out/weights.npz", steps=1)
    assert again.failed == {}
    assert set(read_weights(tmp_path / "on/weights.npz")) == set(read_weights(tmp_path / "out/weights.npz"))


def test_images_and_masks_must_fit(handmade, tmp_path):
    with pytest.raises(UserError, match="needs a mask; got 1 `images` and 0 `masks`"):
        run(tmp_path / "a", images=(handmade / "views.mrc",))
    write_mrc(
        handmade / "small.mrc", np.zeros((6, 30, 28), np.float32), voxel_size_angstrom=10.0, is_stack=True
    )
    report = run(tmp_path / "b", images=(handmade / "views.mrc",), masks=(handmade / "small.mrc",))
    assert "has shape (6, 30, 28); expected that of its image" in report.failed["network"]
    write_mrc(
        handmade / "wrong.mrc", np.full((6, 300, 280), 7, np.float32), voxel_size_angstrom=10.0, is_stack=True
    )
    report = run(tmp_path / "c", images=(handmade / "views.mrc",), masks=(handmade / "wrong.mrc",))
    assert "holds values from 7 to 7; expected 0 to 4" in report.failed["network"]
