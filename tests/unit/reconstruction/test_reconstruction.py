"""Tomograms of Gaussian blobs whose views are written out by trigonometry, against the blobs themselves."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from verglas.algo.reconstruction.filtering import ViewFilter, filter_views, make_frames
from verglas.algo.reconstruction.volume import reconstruct_blocks, split_views
from verglas.errors import UserError
from verglas.model import ImageReference, LocalField, Optics, TiltSeries
from verglas.ops.backprojection import VoxelGrid

FloatArray = npt.NDArray[np.float64]
PIXEL = 10.0
SIZE, DEPTH = 96, 48


class Blobs:
    """Gaussian blobs narrow enough to fill the band up to Nyquist."""

    def __init__(self, sigma: float = 0.45 * PIXEL, count: int = 200) -> None:
        generator = np.random.default_rng(1)
        self.positions = (
            generator.uniform(-1, 1, (count, 3)) * np.array([0.3 * SIZE, 0.3 * SIZE, 0.35 * DEPTH]) * PIXEL
        )
        self.weights = generator.normal(size=count)
        self.sigma = sigma

    def density(self, shape: tuple[int, int, int], voxel: float = PIXEL) -> FloatArray:
        axes = [(np.arange(n) - n // 2) * voxel for n in shape]
        z, y, x = (
            np.exp(-((axis - self.positions[:, 2 - i, None]) ** 2) / (2 * self.sigma**2))
            for i, axis in enumerate(axes)
        )
        scale = voxel**3 / (2 * np.pi * self.sigma**2) ** 1.5
        return np.einsum("p,pz,py,px->zyx", self.weights, z, y, x, optimize=True) * scale

    def view(self, series: TiltSeries, i: int, moves: FloatArray | float = 0.0) -> FloatArray:
        """One view, with the geometry written out: tilt about x, then y, then z, then the shift, then what moves."""
        x, y, z = self.positions.T
        a, b, c = np.deg2rad([series.x_tilt_deg[i], series.y_tilt_deg[i], series.z_rot_deg[i]])
        y, z = y * np.cos(a) - z * np.sin(a), y * np.sin(a) + z * np.cos(a)
        x = x * np.cos(b) + z * np.sin(b)
        x, y = x * np.cos(c) - y * np.sin(c), x * np.sin(c) + y * np.cos(c)
        x, y = series.magnification[i] @ np.stack([x, y])
        x, y = x + series.x_shift_angstrom[i], y + series.y_shift_angstrom[i]
        x, y = np.stack([x, y]) + np.transpose(moves)
        pixel = series.pixel_size_angstrom
        rows, columns = ((np.arange(n) - n // 2) * pixel for n in series.image_shape)
        gy = np.exp(-((rows - y[:, None]) ** 2) / (2 * self.sigma**2))
        gx = np.exp(-((columns - x[:, None]) ** 2) / (2 * self.sigma**2))
        return np.einsum("p,py,px->yx", self.weights, gy, gx) * pixel**2 / (2 * np.pi * self.sigma**2)


def make_series(
    step: float = 2.0, shape: tuple[int, int] = (SIZE, SIZE), pixel: float = PIXEL, **changes: object
) -> TiltSeries:
    tilts = np.arange(-60, 60 + step / 2, step)
    images = tuple(ImageReference("stack.mrc", i) for i in range(len(tilts)))
    series = TiltSeries("TS", Optics(pixel), shape, images, tilts)
    return replace(series, **changes)  # type: ignore[arg-type]


def reconstruct(
    views: list[FloatArray], series: TiltSeries, grid: VoxelGrid, options: ViewFilter | None = None
) -> FloatArray:
    options = options or ViewFilter(normalise=False)
    images = (torch.from_numpy(view.astype(np.float32)) for view in views)
    filtered = filter_views(images, series, grid.voxel_size_angstrom, options)
    volume = np.zeros(grid.shape)
    frames = make_frames(series, grid.voxel_size_angstrom)
    for start, (block,) in reconstruct_blocks(filtered, frames, grid, [torch.arange(len(series))]):
        volume[:, start : start + block.shape[1]] = block.numpy()
    return volume


def wedge_fsc(a: FloatArray, b: FloatArray, limit_deg: float = 58.0) -> FloatArray:
    """FSC inside the measured wedge, in ten shells up to Nyquist."""
    fa, fb = np.fft.fftn(a), np.fft.fftn(b)
    kz, ky, kx = np.meshgrid(*(np.fft.fftfreq(n) for n in a.shape), indexing="ij")
    radius = np.sqrt(kz**2 + ky**2 + kx**2)
    measured = np.abs(kz) <= np.abs(kx) * np.tan(np.deg2rad(limit_deg))
    curve = []
    for low in np.arange(0.025, 0.5, 0.05):
        shell = measured & (radius >= low) & (radius < low + 0.05)
        cross = (fa[shell] * fb[shell].conj()).real.sum()
        curve.append(cross / np.sqrt((np.abs(fa[shell]) ** 2).sum() * (np.abs(fb[shell]) ** 2).sum()))
    return np.array(curve)


GRID = VoxelGrid((DEPTH, SIZE, SIZE), PIXEL)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "z_rot_deg": np.float64(-4.3),
            "x_shift_angstrom": np.float64(23),
            "y_shift_angstrom": np.float64(-41),
        },
        {"z_rot_deg": np.float64(85.0)},
        {"magnification": np.array([[1.01, 0.004], [-0.003, 0.99]])},
    ],
    ids=["aligned", "turned and shifted", "axis along x", "magnified"],
)
def test_reconstruction_matches_the_blobs(changes: dict[str, object]) -> None:
    blobs, series = Blobs(), make_series(**changes)
    views = [blobs.view(series, i) for i in range(len(series))]
    volume = reconstruct(views, series, GRID)
    truth = blobs.density(GRID.shape)
    fsc = wedge_fsc(volume, truth)
    # The issue asks for 0.9 to half Nyquist and 0.5 at 0.8 Nyquist.
    assert (fsc[:5] > 0.98).all(), fsc
    assert fsc[7] > 0.85, fsc


def test_volume_has_the_density_of_the_specimen() -> None:
    """Summed along the beam, the volume is the untilted view."""
    blobs = Blobs(sigma=1.2 * PIXEL)
    series = make_series(z_rot_deg=np.float64(12.0), x_shift_angstrom=np.float64(33.0))
    views = [blobs.view(series, i) for i in range(len(series))]
    total = reconstruct(views, series, VoxelGrid((2 * DEPTH, SIZE, SIZE), PIXEL)).sum(axis=0)
    untilted = blobs.view(make_series(step=120.0, y_tilt_deg=np.zeros(2)), 0)
    assert (total * untilted).sum() / (untilted**2).sum() == pytest.approx(1.0, abs=0.05)


def test_x_tilt_is_followed() -> None:
    blobs, series = Blobs(), make_series(x_tilt_deg=np.float64(6.0))
    views = [blobs.view(series, i) for i in range(len(series))]
    volume = reconstruct(views, series, GRID)
    assert (wedge_fsc(volume, blobs.density(GRID.shape), limit_deg=52.0)[:6] > 0.97).all()


def test_what_rounding_leaves_of_an_x_tilt_changes_nothing() -> None:
    views = list(np.random.default_rng(3).normal(size=(13, SIZE, SIZE)))
    level, rounded = (
        reconstruct(views, make_series(10.0, x_tilt_deg=np.float64(tilt)), GRID) for tilt in (0.0, 3e-15)
    )
    np.testing.assert_allclose(rounded, level, atol=1e-5 * level.std())


@pytest.mark.parametrize(
    ("name", "planted"),
    [
        ("mirrored axis", lambda s: replace(s, z_rot_deg=-s.z_rot_deg)),
        ("wrong sign of tilt", lambda s: replace(s, y_tilt_deg=-s.y_tilt_deg)),
        ("half a pixel", lambda s: replace(s, x_shift_angstrom=s.x_shift_angstrom + PIXEL / 2)),
        (
            "half a pixel along the axis",
            lambda s: replace(s, y_shift_angstrom=s.y_shift_angstrom + PIXEL / 2),
        ),
        ("shifts with the wrong sign", lambda s: replace(s, x_shift_angstrom=-s.x_shift_angstrom)),
    ],
)
def test_planted_geometry_errors_are_seen(name: str, planted: object) -> None:
    blobs = Blobs()
    series = make_series(z_rot_deg=np.float64(4.3), x_shift_angstrom=np.float64(23.0))
    views = [blobs.view(series, i) for i in range(len(series))]
    truth = blobs.density(GRID.shape)
    assert wedge_fsc(reconstruct(views, series, GRID), truth)[7] > 0.88
    wrong = reconstruct(views, planted(series), GRID)  # type: ignore[operator]
    assert wedge_fsc(wrong, truth)[7] < 0.75, name


def test_binning_crops_in_fourier_space() -> None:
    blobs = Blobs(sigma=0.9 * PIXEL)
    series = make_series(shape=(2 * SIZE, 2 * SIZE), pixel=PIXEL / 2)
    views = [blobs.view(series, i) for i in range(len(series))]
    volume = reconstruct(views, series, GRID)
    truth = blobs.density(GRID.shape)
    assert (wedge_fsc(volume, truth)[:6] > 0.97).all()


def test_regions_are_cut_from_the_same_volume() -> None:
    blobs, series = Blobs(), make_series(step=3.0)
    views = [blobs.view(series, i) for i in range(len(series))]
    whole = reconstruct(views, series, GRID)
    region = VoxelGrid((10, 20, 30), PIXEL, (5 * PIXEL, -8 * PIXEL, 3 * PIXEL))
    part = reconstruct(views, series, region)
    z, y, x = DEPTH // 2 + 3 - 5, SIZE // 2 - 8 - 10, SIZE // 2 + 5 - 15
    np.testing.assert_allclose(part, whole[z : z + 10, y : y + 20, x : x + 30], atol=2e-5)


def test_a_grid_between_the_pixels_is_as_sharp() -> None:
    """Half a voxel off the pixels' own lattice, rows must be sampled there, not averaged."""
    blobs, series = Blobs(), make_series()
    views = [blobs.view(series, i) for i in range(len(series))]
    half = PIXEL / 2
    volume = reconstruct(views, series, VoxelGrid(GRID.shape, PIXEL, (half, half, half)))
    blobs.positions = blobs.positions - half
    fsc = wedge_fsc(volume, blobs.density(GRID.shape))
    assert (fsc[:5] > 0.98).all(), fsc
    assert fsc[7] > 0.85, fsc


def test_blocks_make_the_same_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    blobs, series = Blobs(), make_series(step=6.0)
    views = [blobs.view(series, i) for i in range(len(series))]
    whole = reconstruct(views, series, GRID)
    monkeypatch.setattr("verglas.algo.reconstruction.volume.BLOCK_BYTES", 7 * 4 * DEPTH * SIZE)
    np.testing.assert_allclose(reconstruct(views, series, GRID), whole, atol=1e-5)


def test_halves_add_up_to_the_whole() -> None:
    blobs, series = Blobs(), make_series(step=3.0)
    views = [torch.from_numpy(blobs.view(series, i).astype(np.float32)) for i in range(len(series))]
    filtered = filter_views(iter(views), series, PIXEL, ViewFilter(normalise=False))
    frames = make_frames(series, PIXEL)
    odd, even = split_views(len(series))
    assert sorted([*odd.tolist(), *even.tolist()]) == list(range(len(series)))
    _, (whole,) = next(reconstruct_blocks(filtered, frames, GRID, [torch.arange(len(series))]))
    _, halves = next(reconstruct_blocks(filtered, frames, GRID, [odd, even]))
    torch.testing.assert_close(halves[0] + halves[1], whole[:, : halves[0].shape[1]], rtol=1e-4, atol=1e-5)


def test_views_count_by_ice_and_exposure() -> None:
    blobs, series = Blobs(), make_series(step=30.0, exposure_e_per_a2=np.array([4.0, 2.0, 2.0, 2.0, 2.0]))
    views = [torch.from_numpy(blobs.view(series, i).astype(np.float32)) for i in range(len(series))]
    plain = filter_views(iter(views), series, PIXEL, ViewFilter())
    weighted = filter_views(iter(views), series, PIXEL, ViewFilter(ice_thickness_angstrom=800.0))
    found = (weighted * plain).sum(dim=(1, 2)) / plain.square().sum(dim=(1, 2))
    # Tilts of -60, -30, 0, 30, 60 degrees; 4000 Å of mean free path.
    path = 800 / np.cos(np.deg2rad([60, 30, 0, 30, 60]))
    expected = np.exp(-(path - 800) / 4000) * np.array([4, 2, 2, 2, 2]) / 2.4
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_ctf_needs_a_defocus() -> None:
    series = make_series(step=30.0)
    views = [torch.zeros(SIZE, SIZE)] * len(series)
    with pytest.raises(UserError, match="no defocus"):
        filter_views(iter(views), series, PIXEL, ViewFilter(ctf="flip"))


def ctf_by_hand(radius: FloatArray, defocus: FloatArray | float) -> FloatArray:
    """Weak-phase CTF at 300 kV, Cs 2.7 mm, amplitude contrast 0.1; radius in 1/Å."""
    wavelength = 0.0196875
    gamma = np.pi * wavelength * defocus * radius**2 - np.pi / 2 * 2.7e7 * wavelength**3 * radius**4
    return -np.sin(gamma + np.arcsin(0.1))


def test_phases_flip_with_each_places_own_defocus() -> None:
    """A tilted view of points: far from the axis only the strip's own defocus turns their rings right."""
    pixel, size, tilt = 3.0, 512, 55.0
    series = make_series(
        step=120.0, shape=(size, size), pixel=pixel, nominal_tilt_deg=np.array([-tilt, tilt]),
        y_tilt_deg=np.array([-tilt, tilt]),
        defocus_u_angstrom=np.float64(15000), defocus_v_angstrom=np.float64(15000),
    )  # fmt: skip
    frequency = np.hypot(np.fft.fftfreq(size, pixel)[:, None], np.fft.rfftfreq(size, pixel))
    place = 170 * pixel
    # A point of the plane z = 0 at x has s = x cos(tilt) and lies x sin(tilt) lower in the second view.
    x = place / np.cos(np.deg2rad(tilt))
    defocus = 15000 + series.hand * -x * np.sin(np.deg2rad(tilt))
    point = np.zeros((size, size))
    point[size // 2, size // 2 + 170] = 1.0
    view = np.fft.irfft2(np.fft.rfft2(point) * ctf_by_hand(frequency, defocus))
    images = [torch.zeros(size, size), torch.from_numpy(view.astype(np.float32))]
    flipped = filter_views(iter(images), series, pixel, ViewFilter(normalise=False, ctf="flip"))[1]
    at_axis = replace(series, y_tilt_deg=np.array([-1e-6, 1e-6]))
    unaware = filter_views(iter(images), at_axis, pixel, ViewFilter(normalise=False, ctf="flip"))[1]
    # All phases zero: the point's height is the sum of all amplitudes, the largest that it can be.
    row, column = size // 2, size // 2 + 170
    assert abs(flipped[row, column]) / flipped.std() > 1.5 * abs(unaware[row, column]) / unaware.std()


def test_a_local_field_is_undone() -> None:
    """Blobs that move in each view with the place where they lie: with the field they are where they should be."""
    blobs, series = Blobs(sigma=0.6 * PIXEL), make_series(z_rot_deg=np.float64(80.0))
    half = 0.35 * SIZE * PIXEL

    def bend(places: FloatArray, tilt: float) -> FloatArray:
        """Å in the image, of places `(..., 2)` of the specimen."""
        x, y = np.moveaxis(places / half, -1, 0)
        return 30 * np.stack([tilt * (x**2 - y), tilt**2 * x * y], axis=-1)

    tilts = series.nominal_tilt_deg / 60
    views = [blobs.view(series, i, bend(blobs.positions[:, :2], tilt)) for i, tilt in enumerate(tilts)]
    x = np.linspace(-half, half, 9)
    nodes = np.stack(np.meshgrid(x, x), axis=-1)
    field = LocalField((-half, -half), (half, half), np.stack([bend(nodes, tilt) for tilt in tilts]))
    truth = blobs.density(GRID.shape)
    without, found = (
        wedge_fsc(reconstruct(views, one, GRID), truth) for one in (series, replace(series, local=field))
    )
    assert found[5] > 0.8
    assert without[5] < found[5] - 0.2
