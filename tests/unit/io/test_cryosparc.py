"""cryoSPARC's tables: kept exactly, and in RELION's labels the same particles as RELION's own file."""

from pathlib import Path

import numpy as np
import pytest

from verglas.errors import FileFormatError, MissingFileError
from verglas.io.cryosparc import particles_from_cs, read_cs, write_cs
from verglas.io.star import read_table


def relion_matrix(rot: float, tilt: float, psi: float) -> np.ndarray:
    """RELION's Euler matrix, reference to specimen, element by element."""
    (cr, ct, cp), (sr, s_t, sp) = np.cos(np.deg2rad([rot, tilt, psi])), np.sin(np.deg2rad([rot, tilt, psi]))
    return np.array(
        [
            [cp * ct * cr - sp * sr, cp * ct * sr + sp * cr, -cp * s_t],
            [-sp * ct * cr - cp * sr, -sp * ct * sr + cp * cr, sp * s_t],
            [s_t * cr, s_t * sr, ct],
        ]
    )


def rodrigues(vector: np.ndarray) -> np.ndarray:
    angle = np.linalg.norm(vector)
    x, y, z = vector / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def test_real_files_round_trip(shared_data: Path, tmp_path: Path) -> None:
    paths = sorted(shared_data.rglob("*.cs"))
    assert len(paths) == 2
    for path in paths:
        records = read_cs(path)
        write_cs(tmp_path / "copy.cs", records)
        again = np.load(tmp_path / "copy.cs", allow_pickle=False)
        assert again.dtype == records.dtype
        assert again.tobytes() == records.tobytes() == np.load(path).tobytes()


def test_same_particles_as_relions_file(shared_data: Path) -> None:
    ours = particles_from_cs(read_cs(shared_data / "particles" / "empiar_10076_7.cs"))
    star = read_table(shared_data / "particles" / "empiar_10076_7.star")
    assert ours["rlnImageName"].tolist() == [f"{i:06d}@empiar_10076_7.mrc" for i in range(1, 8)]
    for label in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnVoltage", "rlnSphericalAberration"):
        np.testing.assert_allclose(ours[label], star[label], rtol=1e-6)
    np.testing.assert_allclose(ours["rlnAmplitudeContrast"], star["rlnAmplitudeContrast"], rtol=1e-6)
    pixel_size = star["rlnDetectorPixelSize"] * 1e4 / star["rlnMagnification"]
    np.testing.assert_allclose(ours["rlnImagePixelSize"], pixel_size, rtol=1e-5)
    assert "rlnAngleRot" not in ours


def test_poses_of_a_real_2d_classification(shared_data: Path) -> None:
    records = read_cs(shared_data / "formats" / "cryosparc" / "cryosparc_J2_particles_exported.cs")
    table = particles_from_cs(records)
    assert len(table) == 22
    assert table["rlnImageName"][1] == "000002@J1/imported/000090334788266266069_18jam15b_0345_ali_DW.mrcs"
    np.testing.assert_allclose(table["rlnAnglePsi"], np.rad2deg(records["alignments2D/pose"]), rtol=1e-6)
    np.testing.assert_allclose(table["rlnOriginYAngst"][:2], [12 * 1.345, 6 * 1.345], rtol=1e-6)
    assert table["rlnClassNumber"].min() >= 1
    assert "rlnRandomSubset" not in table


def test_rotation_vectors_become_relions_angles() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(20, 3))
    vectors[0] = [0.0, 0.0, 0.5]  # tilt 0: the beam alone, as in 2-D
    records = np.zeros(
        20,
        dtype=[
            ("alignments3D/pose", "f8", 3),
            ("alignments3D/shift", "f4", 2),
            ("alignments3D/psize_A", "f4"),
            ("alignments3D/split", "u4"),
            ("location/micrograph_path", "S20"),
            ("location/micrograph_shape", "u4", 2),
            ("location/center_x_frac", "f4"),
            ("location/center_y_frac", "f4"),
        ],
    )
    records["alignments3D/pose"] = vectors
    records["alignments3D/shift"] = [3.0, -2.0]
    records["alignments3D/psize_A"] = 1.5
    records["alignments3D/split"] = np.arange(20) % 2
    records["location/micrograph_path"] = b">J1/a.mrc"
    records["location/micrograph_shape"] = [1000, 2000]
    records["location/center_x_frac"] = 0.25
    records["location/center_y_frac"] = 0.5
    table = particles_from_cs(records)
    for vector, angles in zip(
        vectors, table[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].to_numpy(), strict=True
    ):
        # pyem and cryoDRGN, which both export to RELION, take the transpose, too.
        np.testing.assert_allclose(relion_matrix(*angles), rodrigues(vector).T, atol=1e-9)
    assert table["rlnAnglePsi"][0] == pytest.approx(np.rad2deg(0.5))
    assert table["rlnOriginXAngst"][0] == 4.5
    assert table["rlnOriginYAngst"][0] == -3.0
    assert table["rlnRandomSubset"].tolist()[:3] == [1, 2, 1]
    assert table[["rlnCoordinateX", "rlnCoordinateY"]].to_numpy()[0].tolist() == [500.0, 500.0]
    assert table["rlnMicrographName"][0] == "J1/a.mrc"


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no\.cs"):
        read_cs(tmp_path / "no.cs")
    path = tmp_path / "a.cs"
    for content in (b"", b"not numpy", b"\x93NUMPY\x01\x00"):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=r"is not a \.cs file"):
            read_cs(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(FileFormatError, match="holds an array of float64"):
        read_cs(path)
    with path.open("wb") as file:
        np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(FileFormatError, match=r"is not a \.cs file"):
        read_cs(path)
