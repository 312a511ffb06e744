"""The tilt geometry of design section 3, held against IMOD, Warp and RELION 5 by other routes."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from verglas.io.imod import ImodAlignment, read_tlt, read_xf, tilt_series_from_imod, tilt_series_to_imod
from verglas.io.star import read_star, read_table
from verglas.io.warp import read_warp_xml, tilt_series_from_warp
from verglas.model import Optics, TiltSeries
from verglas.ops.geometry import projection_matrices, series_matrices

SHAPE = (630, 652)
PIXEL = 10.0


def matrices(series: TiltSeries) -> np.ndarray:
    return series_matrices(series.geometry).numpy()


@pytest.fixture
def series_folder(shared_data: Path) -> Path:
    return shared_data / "tilt_series_empiar10499"


@pytest.fixture
def imod_series(series_folder: Path) -> TiltSeries:
    alignment = ImodAlignment(
        read_xf(series_folder / "imod" / "00254.xf"), read_tlt(series_folder / "imod" / "00254.tlt")
    )
    return tilt_series_from_imod(
        alignment, name="00254", stack=Path("00254.mrc"), optics=Optics(PIXEL), image_shape=SHAPE
    )


def read_warp_series(path: Path) -> TiltSeries:
    return tilt_series_from_warp(
        read_warp_xml(path), name="00254", pixel_size_angstrom=PIXEL, image_shape=SHAPE
    )


def shift_residual_px(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """What is left of the difference in shifts once one translation of the specimen has been taken out."""
    design = first[:, :2, :3].reshape(-1, 3)
    difference = (second - first)[:, :2, 3].ravel()
    move = np.linalg.lstsq(design, difference, rcond=None)[0]
    return np.abs(difference - design @ move).reshape(-1, 2) / PIXEL


def point_distance_px(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Distance of specimen points up to 100 nm from the centre in two descriptions of the same views."""
    points = np.random.default_rng(1).uniform(-1000, 1000, (200, 3))
    places = [m[:, :2, :3] @ points.T + m[:, :2, 3:] for m in (first, second)]
    return np.linalg.norm(places[0] - places[1], axis=1) / PIXEL


def angle_between_deg(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    chord = np.linalg.norm(first[:, :3, :3] - second[:, :3, :3], axis=(1, 2)) / (2 * math.sqrt(2))
    return np.rad2deg(2 * np.arcsin(np.clip(chord, 0, 1)))


def mirror(series: TiltSeries) -> TiltSeries:
    return replace(series, y_tilt_deg=-np.asarray(series.y_tilt_deg), x_tilt_deg=-series.x_tilt_deg)


def test_warp_and_imod_agree_on_the_real_series(series_folder: Path, imod_series: TiltSeries) -> None:
    # Warp gives IMOD its own angles, and so the mirror image in z of the specimen that it works in.
    warp_series = mirror(read_warp_series(series_folder / "00254.xml"))
    imod, warp = matrices(imod_series), matrices(warp_series)
    assert np.abs(imod_series.z_rot_deg + 4.3).max() < 1e-3
    assert angle_between_deg(imod, warp).max() < 0.01
    # Warp refined the shifts: by less than a pixel for most views, by up to 4.5 at the highest tilts. That
    # this is in the files and not in the conversion is told by Warp's own import of IMOD's files, which is
    # half a pixel apart from ours.
    residual = shift_residual_px(imod, warp)
    own_import = replace(
        read_warp_series(series_folder / "imod" / "00254.xml"), y_tilt_deg=warp_series.y_tilt_deg
    )
    assert np.abs(residual - shift_residual_px(matrices(own_import), warp)).max() < 0.25
    assert np.median(residual) < 0.7
    assert np.quantile(residual, 0.9) < 2.5
    assert residual.max() < 4.6
    assert point_distance_px(imod, warp).max() < 10.0


def test_the_mirrored_hand_does_not_agree(series_folder: Path, imod_series: TiltSeries) -> None:
    warp_series = read_warp_series(series_folder / "00254.xml")
    imod, mirrored = matrices(imod_series), matrices(warp_series)
    expected = 2 * np.abs(warp_series.y_tilt_deg)
    assert np.allclose(angle_between_deg(imod, mirrored), expected, atol=0.05)
    assert point_distance_px(imod, mirrored).max() > 100.0


def test_warp_imports_imod_transforms_as_we_do(series_folder: Path, imod_series: TiltSeries) -> None:
    # Warp's own import takes its centre for IMOD's, which is half a pixel away in both axes of even length.
    imported = read_warp_series(series_folder / "imod" / "00254.xml")
    assert np.abs(imported.z_rot_deg - imod_series.z_rot_deg).max() < 1e-4
    assert np.abs(imported.x_shift_angstrom - 5.0 - imod_series.x_shift_angstrom).max() < 1e-3
    assert np.abs(imported.y_shift_angstrom - 5.0 - imod_series.y_shift_angstrom).max() < 1e-3


@pytest.mark.parametrize("shape", [(630, 652), (631, 652), (629, 651)])
def test_imod_by_trigonometry_written_out(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    count = 7
    turn, scale = np.deg2rad(rng.uniform(-180, 180, count)), rng.uniform(0.97, 1.03, count)
    transforms = np.empty((count, 2, 3))
    for i in range(count):
        transforms[i, :, :2] = scale[i] * np.array(
            [[math.cos(turn[i]), math.sin(turn[i])], [-math.sin(turn[i]), math.cos(turn[i])]]
        ) + rng.normal(0, 0.01, (2, 2))
        transforms[i, :, 2] = rng.normal(0, 30, 2)
    alignment = ImodAlignment(
        transforms,
        tilt_deg=rng.uniform(-70, 70, count),
        x_tilt_deg=rng.uniform(-10, 10, count),
        x_axis_tilt_deg=2.5,
        offset_deg=-1.5,
        axis_shift_px=6.0,
    )
    pixel = 2.17
    series = tilt_series_from_imod(
        alignment, name="a", stack=Path("a.mrc"), optics=Optics(pixel), image_shape=shape
    )
    ours = matrices(series)
    height, width = shape
    for point in rng.normal(0, 300, (20, 3)):
        for i in range(count):
            x, y, z = point / pixel
            tilt = math.radians(alignment.tilt_deg[i] - 1.5)
            alpha = math.radians(alignment.x_tilt_deg[i] - 2.5)
            # tilt: the row of a slice is -z in the frame of `trimvol -rx`, and both sines are taken negative.
            row, slice_ = -z, y
            projected_x = x * math.cos(tilt) + 6.0
            projected_x += (-slice_ * math.sin(alpha) + row * math.cos(alpha)) * -math.sin(tilt)
            projected_y = slice_ * math.cos(alpha) + row * math.sin(alpha)
            # newstack: q' = A q + d, q in pixels from the coordinate n / 2; a pixel's centre is at i + 1/2.
            (a11, a12, dx), (a21, a22, dy) = transforms[i]
            u, v = projected_x - dx, projected_y - dy
            determinant = a11 * a22 - a12 * a21
            column = (a22 * u - a12 * v) / determinant + width / 2 - 0.5
            line = (-a21 * u + a11 * v) / determinant + height / 2 - 0.5
            place = ours[i] @ [*point, 1.0]
            assert place[0] / pixel + width // 2 == pytest.approx(column, abs=1e-9)
            assert place[1] / pixel + height // 2 == pytest.approx(line, abs=1e-9)


def test_imod_and_back_is_exact(imod_series: TiltSeries, series_folder: Path) -> None:
    back = tilt_series_to_imod(imod_series)
    assert np.abs(back.transforms - read_xf(series_folder / "imod" / "00254.xf")).max() < 1e-12
    assert np.array_equal(back.tilt_deg, read_tlt(series_folder / "imod" / "00254.tlt"))
    again = tilt_series_from_imod(
        back, name="00254", stack=Path("00254.mrc"), optics=Optics(PIXEL), image_shape=SHAPE
    )
    assert np.abs(matrices(again) - matrices(imod_series)).max() < 1e-9


def warp_place(
    attributes: dict[str, float], view: dict[str, float], point: np.ndarray, *, is_inverted: bool
) -> tuple[float, float, float]:
    """Warp's formula: a turn about x, then RELION's Euler matrix of (0, tilt, psi), which turns passively."""

    def passive(tilt: float, psi: float) -> np.ndarray:
        ct, st, cp, sp = math.cos(tilt), math.sin(tilt), math.cos(psi), math.sin(psi)
        return np.array([[cp * ct, sp, -cp * st], [-sp * ct, cp, sp * st], [st, 0.0, ct]])

    def about_x(angle: float) -> np.ndarray:
        c, s = math.cos(angle), math.sin(angle)
        return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])

    tilt = math.radians(view["angle"] + attributes["y"])
    psi, level_x = -math.radians(view["axis"]), math.radians(attributes["x"])
    x, y, depth = passive(tilt, psi) @ about_x(level_x) @ point
    if is_inverted:
        depth = (passive(-tilt, psi) @ about_x(-level_x) @ (point * [1, 1, -1]))[2]
    return x + view["x"], y + view["y"], depth


@pytest.mark.parametrize("is_inverted", [False, True])
def test_warp_by_its_own_formula(tmp_path: Path, is_inverted: bool) -> None:
    rng = np.random.default_rng(5)
    count = 6
    values = {
        "Angles": rng.uniform(-60, 60, count),
        "AxisAngle": rng.uniform(-180, 180, count),
        "AxisOffsetX": rng.normal(0, 50, count),
        "AxisOffsetY": rng.normal(0, 50, count),
    }
    lists = "".join(f"<{k}>" + "\n".join(map(repr, v.tolist())) + f"</{k}>" for k, v in values.items())
    movies = "<MoviePath>" + "\n".join(f"../{i}.tif" for i in range(count)) + "</MoviePath>"
    path = tmp_path / "a.xml"
    path.write_text(
        f'<TiltSeries AreAnglesInverted="{is_inverted}" LevelAngleX="1.5" LevelAngleY="-4">'
        f"{lists}{movies}</TiltSeries>"
    )
    series = tilt_series_from_warp(
        read_warp_xml(path), name="a", pixel_size_angstrom=PIXEL, image_shape=(64, 80)
    )
    ours = matrices(series)
    assert series.hand == (-1 if is_inverted else 1)
    for point in rng.normal(0, 300, (20, 3)):
        for i in range(count):
            view = {
                "angle": values["Angles"][i],
                "axis": values["AxisAngle"][i],
                "x": values["AxisOffsetX"][i],
                "y": values["AxisOffsetY"][i],
            }
            place = warp_place({"x": 1.5, "y": -4.0}, view, point, is_inverted=is_inverted)
            x, y, depth = (ours[i] @ [*point, 1.0])[:3]
            assert (x, y, series.hand * depth) == pytest.approx(place, abs=1e-9)


def relion_series(shared_data: Path) -> list[tuple[pd.Series, pd.DataFrame]]:
    folder = shared_data / "formats" / "relion5"
    table = read_table(folder / "tilt_series.star")
    return [
        (row, next(iter(read_star(folder / "tilt_series" / f"{row['rlnTomoName']}.star").values())))
        for _, row in table.iterrows()
    ]


def test_relion_5_projection_matrices(shared_data: Path) -> None:
    checked = 0
    for tomogram, views in relion_series(shared_data):
        pixel = tomogram["rlnTomoTiltSeriesPixelSize"]
        # RELION's matrices go from voxels of the tomogram's corner to pixels of the image's corner.
        theirs = np.array(
            [
                [[float(v) for v in row[f"rlnTomoProj{axis}"].strip("[]").split(",")] for axis in "XYZW"]
                for _, row in views.iterrows()
            ]
        )
        ours = projection_matrices(
            x_tilt_deg=torch.tensor(views["rlnTomoXTilt"].to_numpy(float)),
            y_tilt_deg=torch.tensor(views["rlnTomoYTilt"].to_numpy(float)),
            z_rot_deg=torch.tensor(views["rlnTomoZRot"].to_numpy(float)),
            x_shift_angstrom=torch.tensor(views["rlnTomoXShiftAngst"].to_numpy(float)),
            y_shift_angstrom=torch.tensor(views["rlnTomoYShiftAngst"].to_numpy(float)),
        ).numpy()
        assert np.abs(ours[:, :3, :3] - theirs[:, :3, :3]).max() < 1e-6
        centre = np.array([tomogram[f"rlnTomoSize{axis}"] // 2 for axis in "XYZ"], dtype=float)
        of_centre = theirs[:, :2, :3] @ centre + theirs[:, :2, 3]
        image_centre = of_centre - ours[:, :2, 3] / pixel
        # Pixel n // 2 of these images of 3710 x 3838.
        assert np.abs(image_centre - [3710 // 2, 3838 // 2]).max() < 1e-4
        checked += len(views)
    assert checked > 100
