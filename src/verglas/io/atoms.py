"""Atomic models (PDB, mmCIF, gzipped or not) read with gemmi."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gemmi
import numpy as np
import numpy.typing as npt

from verglas.errors import FileFormatError, UserError
from verglas.files import check_exists


@dataclass(frozen=True, eq=False)
class Atoms:
    """The atoms of a model, without waters.

    Parameters
    ----------
    positions_angstrom
        `(n, 3)` xyz in the frame of the file.
    atomic_numbers
        `(n,)` element numbers.
    b_factors_a2
        `(n,)` isotropic displacement factors as the file gives them, Å².
    occupancies
        `(n,)` occupancies; alternate places of one atom share them.
    """

    positions_angstrom: npt.NDArray[np.float64]
    atomic_numbers: npt.NDArray[np.int64]
    b_factors_a2: npt.NDArray[np.float64]
    occupancies: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.atomic_numbers)


def read_atoms(path: Path | str, assembly: Literal["first", "asymmetric"] = "first") -> Atoms:
    """Read the atoms of the first model of a PDB or mmCIF file.

    Parameters
    ----------
    path
        `.pdb`, `.ent`, `.cif` or `.mmcif`, with or without `.gz`.
    assembly
        "first" makes the first biological assembly that the header describes (the atoms as they are where it
        describes none); "asymmetric" takes the atoms as they are.

    Raises
    ------
    MissingFileError
        When there is no such file.
    FileFormatError
        When the file cannot be read or holds no atoms.
    UserError
        When `assembly` is neither of the two.
    """
    if assembly not in {"first", "asymmetric"}:
        raise UserError(f"`assembly` must be first or asymmetric; got {assembly!r}")
    path = check_exists(path, "atomic model")
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        raise FileFormatError(f"atomic model {str(path)!r} cannot be read: {error}") from error
    structure.remove_waters()
    if len(structure) == 0 or structure[0].count_atom_sites() == 0:
        raise FileFormatError(f"atomic model {str(path)!r} holds no atoms; expected a PDB or mmCIF file")
    model = structure[0]
    if assembly == "first" and len(structure.assemblies):
        model = gemmi.make_assembly(structure.assemblies[0], model, gemmi.HowToNameCopiedChain.Dup)
    sites = [site.atom for site in model.all()]
    return Atoms(
        positions_angstrom=np.array([atom.pos.tolist() for atom in sites], dtype=np.float64),
        atomic_numbers=np.array([atom.element.atomic_number for atom in sites], dtype=np.int64),
        b_factors_a2=np.array([atom.b_iso for atom in sites], dtype=np.float64),
        occupancies=np.array([atom.occ for atom in sites], dtype=np.float64),
    )
