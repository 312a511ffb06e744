"""Order and exposure of views."""

import numpy as np
import pytest

from verglas.algo.tilt_alignment.exposures import (
    accumulate_exposures,
    infer_exposures,
    match_views,
    order_dose_symmetric,
)
from verglas.errors import UserError


def test_dose_symmetric_order_goes_outward():
    tilts = [-6.01, -3.0, 0.02, 2.99, 6.0]
    assert order_dose_symmetric(tilts).tolist() == [4, 2, 0, 1, 3]


def test_dose_symmetric_order_is_close_to_a_real_one(shared_data):
    text = (shared_data / "tilt_series_empiar10499" / "00254.xml").read_text(encoding="utf-8-sig")
    angles, dose = (
        np.array(text.split(f"<{key}>")[1].split(f"</{key}>")[0].split(), dtype=float)
        for key in ("Angles", "Dose")
    )
    guess = accumulate_exposures(order_dose_symmetric(angles), np.full(41, 3.0))
    assert np.abs(guess - dose).max() <= 3.0


def test_exposures_add_up_in_the_order_of_recording():
    order, exposure = [2, 0, 1], [5.0, 1.0, 2.0]
    before = accumulate_exposures(order, exposure)
    assert before.tolist() == [3.0, 0.0, 1.0]
    # Two of the three come back; nothing tells the last.
    assert infer_exposures(before).tolist() == [1.5, 1.0, 2.0]


def test_exposures_that_do_not_part_the_views_tell_nothing():
    assert np.isnan(infer_exposures([0.0, 3.0, 3.0])).all()
    assert np.isnan(infer_exposures([0.0])).all()


def test_refined_angles_match_in_their_order():
    recorded = np.array([0.0, 3.0, -3.0, 6.0, -6.0])
    sorted_ = np.sort(recorded)
    jitter = np.array([0.3, -0.2, 0.1, 0.4, -0.3])
    match = match_views(sorted_ + 9.0 + jitter, recorded)
    assert recorded[match].tolist() == sorted_.tolist()


def test_left_out_views_are_skipped():
    assert match_views([-3.1, 6.2], [0.0, 3.0, -3.0, 6.0, -6.0]).tolist() == [2, 3]


def test_views_that_were_not_recorded_are_refused():
    with pytest.raises(UserError, match="only 2 were recorded"):
        match_views([0.0, 3.0, 6.0], [0.0, 3.0])
    with pytest.raises(UserError, match="view at 40 degrees fits to none"):
        match_views([0.0, 3.0, 40.0], [0.0, 3.0, 6.0, 9.0])
