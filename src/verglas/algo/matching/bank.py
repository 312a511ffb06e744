"""All orientations of all templates, written in a basis that they share.

Turned templates resemble each other: a few hundred volumes carry what thousands of them differ in. A tomogram is
therefore correlated with the volumes of the basis, by Fourier transforms, and the scores of all orientations follow
as sums of these correlations: one matrix product, at the speed at which a processor multiplies matrices.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from verglas.algo.matching.template import Template, template_box, turn_templates
from verglas.errors import UserError
from verglas.shapes import Rotations, Values

KEPT_ENERGY = 0.98
"""Share of the templates' energy that the basis keeps; the score of a molecule falls by half of what is missing."""

KEPT_MASK_ENERGY = 0.9999
"""The same for turned masks, whose sums must give variances."""

_SAMPLE_ROWS = 2048
_MULTIPLE = 32


@dataclass(frozen=True, eq=False)
class Basis:
    """Volumes, and the rows that are sums of them.

    Parameters
    ----------
    volumes
        `(k, n, n, n)` float32, orthonormal.
    loadings
        `(r, k)` float32: row r is the sum of the volumes times these.
    kept
        Share of the rows' energy that the volumes carry, between 0 and 1.
    """

    volumes: Float[Tensor, "k n n n"]
    loadings: Float[Tensor, "r k"]
    kept: float


@dataclass(frozen=True, eq=False)
class Bank:
    """What a search compares each place of a tomogram with.

    Parameters
    ----------
    templates
        Rows Σ mask · template² = 1 of every orientation of every template.
    rows
        First row and the one after the last of each template.
    mask
        `(n, n, n)` in which all rows are compared; none when masks turn with the templates.
    masks
        The turned masks as rows.
    mass
        `(r,)` sum of each turned mask.
    """

    templates: Basis
    rows: tuple[tuple[int, int], ...]
    mask: Float[Tensor, "n n n"] | None
    masks: Basis | None = None
    mass: Float[Tensor, " r"] | None = None

    @property
    def size(self) -> int:
        """Side of the box of a template, voxels."""
        return self.templates.volumes.shape[-1]

    def __len__(self) -> int:
        return len(self.templates.loadings)


def build_bank(
    templates: Sequence[Template],
    rotations: Sequence[Rotations],
    filters: Values,
    *,
    kept: float = KEPT_ENERGY,
    device: torch.device | str = "cpu",
) -> Bank:
    """Turn templates into all their orientations and find a basis for them.

    Parameters
    ----------
    templates
        What is looked for; of one radius.
    rotations
        `(r, 3, 3)` orientations of each template.
    filters
        `(n, n, n // 2 + 1)` what the tomogram keeps of a molecule, and the band that is compared.
    kept
        Share of the energy that the basis keeps at least, up to 1.
    device
        Where the work is done and the bank stays.

    Raises
    ------
    UserError
        When radii differ or the filters are of another box.
    """
    radius = templates[0].radius
    if any(template.radius != radius for template in templates):
        raise UserError(f"templates must have one radius; got {[template.radius for template in templates]}")
    size = template_box(radius)
    if filters.shape[0] != size:
        raise UserError(f"`filters` must be of a box of {size} voxels; got {tuple(filters.shape)}")
    counts = [len(one) for one in rotations]
    rows = tuple((sum(counts[:i]), sum(counts[: i + 1])) for i in range(len(counts)))
    masked = any(template.mask is not None for template in templates)

    def turn(step: int) -> Iterator[tuple[Tensor, Tensor]]:
        for template, matrices in zip(templates, rotations, strict=True):
            yield from turn_templates(template, matrices[::step].float(), filters, device)

    # Orientations an odd step apart are spread over all of them.
    step = -(-sum(counts) // _SAMPLE_ROWS) | 1
    sample = [values for values, _ in turn(step)]
    volumes = _find_basis(torch.cat([values.flatten(1) for values in sample]), kept)
    turned = Basis(volumes, *_project(volumes, (values for values, _ in turn(1)), rescale=True))
    shaped = Basis(volumes.reshape(-1, size, size, size), turned.loadings, turned.kept)
    if not masked:
        _, first = next(turn(1))
        return Bank(shaped, rows, first[0])
    all_masks = torch.cat([masks.expand(len(values), -1, -1, -1).flatten(1) for values, masks in turn(step)])
    mask_volumes = _find_basis(all_masks, KEPT_MASK_ENERGY)
    spread = (masks.expand(len(values), -1, -1, -1) for values, masks in turn(1))
    loadings, share = _project(mask_volumes, spread, rescale=False)
    masks = Basis(mask_volumes.reshape(-1, size, size, size), loadings, share)
    mass = loadings @ mask_volumes.sum(1)
    return Bank(shaped, rows, None, masks, mass)


def _find_basis(rows: Tensor, kept: float) -> Tensor:
    """Orthonormal `(k, d)` volumes that carry the share `kept` of the energy of rows `(r, d)`, largest first.

    Random sums of the rows, iterated, span what most of them have in common (Halko et al. 2011).
    """
    total = float(rows.square().sum(dtype=torch.float64))
    limit = min(rows.shape)
    rank = min(limit, 256)
    generator = torch.Generator().manual_seed(0)
    while True:
        start = torch.randn(rows.shape[0], min(limit, rank + 32), generator=generator).to(rows)
        span = torch.linalg.qr(rows.T @ start).Q
        for _ in range(2):
            span = torch.linalg.qr(rows.T @ (rows @ span)).Q
        inside = rows @ span
        energies, axes = torch.linalg.eigh((inside.T @ inside).double())
        energies, axes = energies.flip(0).clamp_min(0), axes.flip(1)
        needed = int((energies.cumsum(0) < kept * total).sum()) + 1
        if needed <= rank or rank == limit:
            count = min(limit, -(-needed // _MULTIPLE) * _MULTIPLE)
            volumes: Tensor = (span @ axes[:, :count].to(span)).T.contiguous()
            return volumes
        rank = min(limit, 2 * rank)


def _project(volumes: Tensor, batches: Iterator[Tensor], *, rescale: bool) -> tuple[Tensor, float]:
    """Find the loadings of all rows, and the share of their energy in the volumes.

    Rescaled rows have the length of those they stand for, so that noise scores as it would with the whole.
    """
    loadings, inside, total = [], 0.0, 0.0
    for batch in batches:
        rows = batch.flatten(1)
        part = rows @ volumes.T
        lengths, whole = part.norm(dim=1, keepdim=True), rows.norm(dim=1, keepdim=True)
        inside += float(lengths.square().sum())
        total += float(whole.square().sum())
        tiny = torch.finfo(part.dtype).tiny
        loadings.append(part * (whole / lengths.clamp_min(tiny)) if rescale else part)
    return torch.cat(loadings), inside / total if total else 1.0
