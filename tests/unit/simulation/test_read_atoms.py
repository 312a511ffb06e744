"""Atomic models: assemblies, waters, and files that are not models."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from verglas.errors import FileFormatError, MissingFileError, UserError
from verglas.io.atoms import read_atoms

PDB = """\
REMARK 350 BIOMOLECULE: 1
REMARK 350 APPLY THE FOLLOWING TO CHAINS: A
REMARK 350   BIOMT1   1  1.000000  0.000000  0.000000        0.00000
REMARK 350   BIOMT2   1  0.000000  1.000000  0.000000        0.00000
REMARK 350   BIOMT3   1  0.000000  0.000000  1.000000        0.00000
REMARK 350   BIOMT1   2  0.000000 -1.000000  0.000000       10.00000
REMARK 350   BIOMT2   2  1.000000  0.000000  0.000000        0.00000
REMARK 350   BIOMT3   2  0.000000  0.000000  1.000000        5.00000
ATOM      1  CA  ALA A   1       1.000   2.000   3.000  1.00 20.00           C
ATOM      2  N  AALA A   2       4.000   5.000   6.000  0.30 25.00           N
ATOM      3  N  BALA A   2       4.500   5.000   6.000  0.70 26.00           N
HETATM    4  O   HOH A   3       9.000   9.000   9.000  1.00 30.00           O
HETATM    5 ZN    ZN A   4       7.000   8.000   9.000  1.00 30.00          ZN
END
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.pdb"
    path.write_text(PDB)
    return path


def test_asymmetric_atoms_without_waters(model: Path) -> None:
    atoms = read_atoms(model, "asymmetric")
    assert len(atoms) == 4
    np.testing.assert_array_equal(atoms.atomic_numbers, [6, 7, 7, 30])
    np.testing.assert_allclose(atoms.positions_angstrom[0], [1, 2, 3])
    np.testing.assert_allclose(atoms.b_factors_a2, [20, 25, 26, 30])
    np.testing.assert_allclose(atoms.occupancies, [1, 0.3, 0.7, 1], atol=1e-6)


def test_first_assembly_adds_the_copies_of_the_header(model: Path) -> None:
    atoms = read_atoms(model)
    assert len(atoms) == 8
    places = atoms.positions_angstrom
    assert (np.abs(places - [10 - 2, 1, 8]).max(axis=1) < 1e-3).sum() == 1
    assert (np.abs(places - [1, 2, 3]).max(axis=1) < 1e-3).sum() == 1


def test_gzipped_is_the_same(model: Path, tmp_path: Path) -> None:
    packed = tmp_path / "model.pdb.gz"
    packed.write_bytes(gzip.compress(model.read_bytes()))
    np.testing.assert_array_equal(read_atoms(packed).positions_angstrom, read_atoms(model).positions_angstrom)


def test_bad_files_and_words_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="atomic model"):
        read_atoms(tmp_path / "none.pdb")
    for name, content in (("empty.pdb", "END\n"), ("broken.cif", "loop_\n_a\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(FileFormatError, match=name):
            read_atoms(tmp_path / name)
    with pytest.raises(UserError, match="assembly"):
        read_atoms(model, "all")  # type: ignore[arg-type]


def test_real_apoferritin_has_24_like_chains_about_its_centre(shared_data: Path) -> None:
    atoms = read_atoms(shared_data / "models" / "6z6u.pdb.gz")
    assert len(atoms) // 24 == pytest.approx(1352, abs=10)
    centred = atoms.positions_angstrom - atoms.positions_angstrom.mean(axis=0)
    moments = np.linalg.eigvalsh(np.cov(centred.T))
    # Octahedral: the three principal moments are one.
    np.testing.assert_allclose(moments / moments.mean(), 1, atol=5e-3)
    assert np.percentile(np.linalg.norm(centred, axis=1), 99) == pytest.approx(62, abs=4)


def test_real_ribosome_is_read_from_cif(shared_data: Path) -> None:
    atoms = read_atoms(shared_data / "models" / "4v5d.cif.gz")
    assert len(atoms) == pytest.approx(148_000, rel=0.01)
    assert (atoms.atomic_numbers == 15).sum() > 4500
