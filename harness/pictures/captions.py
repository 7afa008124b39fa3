"""What stands under the pictures of `figures`: what is shown, of which block, each column's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from tabulate import tabulate

if TYPE_CHECKING:
    from harness.pictures.maps import Maps

_KINDS = {"teacher": "teacher", "target": "what the student imitates", "student": "student"}
_PICTURES = {
    "norms": (
        "Patch norms",
        "Euclidean norm of each patch token. Each column has its own colours, from 0 to its largest norm; the number "
        "under a map is its largest norm over its median.",
    ),
    "pca": (
        "Principal components",
        "The first three principal components of the patch tokens as red, green and blue. Tokens "
        "were scaled to unit length, since high-norm artifacts would otherwise be all that the components "
        "show. Components and colours are of all images of a column together (2nd to 98th percentile); colours of "
        "different columns have nothing to do with each other.",
    ),
    "similarity": (
        "Similarity to one patch",
        "Cosine similarity of each patch token to the one under the cross. All columns share their colours.",
    ),
    "histograms": (
        "Norms block by block",
        "Share of the patches at each norm (both scales logarithmic), block by block, over the sample. A patch is an "
        "outlier where its robust z within its image is over 5.5; the line is that norm in the median image. A "
        "target's panel has the blocks that the method changes.",
    ),
}


def captions(
    maps: Sequence[Maps],
    names: Sequence[str],
    sample: int,
    files: Mapping[str, Sequence[str]],
    about: str,
    remarks: Sequence[str],
) -> str:
    """Markdown: a section a picture, then one table of the columns.

    Args:
        names: of the images shown. sample: how many images outlier shares and histograms are of.
        files: picture -> its files' names. about: one sentence about the whole. remarks: why a column is missing.
    """
    parts = ["# Captions", f"{about} Images: {', '.join(f'`{name}`' for name in names)}."]
    for key, (heading, text) in _PICTURES.items():
        parts += [f"## {heading}", f"Files: {', '.join(f'`{name}`' for name in files[key])}.", text + _own(key, maps)]
    parts += ["## Columns", _table(maps, len(names), sample)]
    parts.append(
        "Blocks are counted from 0. Tokens of teachers and students are taken after the block named and before the "
        "final norm, which would hide artifacts; a target is what the method makes of such tokens, which may hold a "
        "norm. The outlier share is the mean over images of the share of patches with robust z > 5.5; the sample is "
        f"{sample} images at equal distances, however many are shown. The norms of a model without artifacts have a "
        "tail too: a small share alone does not prove artifacts."
    )
    if remarks:
        parts.append("\n".join(f"- {remark}" for remark in remarks))
    return "\n\n".join(parts) + "\n"


def _own(key: str, maps: Sequence[Maps]) -> str:
    if key != "similarity":
        return ""
    row, column = maps[0].mark
    return (
        f" The cross is on row {row}, column {column} of the teacher's {maps[0].grid[0]} x {maps[0].grid[1]} patches."
    )


def _table(maps: Sequence[Maps], shown: int, sample: int) -> str:
    header = ["column", "what", "after block", "patches", "median norm", "largest norm"]
    header += [f"outliers, {shown} shown", f"outliers, sample of {sample}"]
    rows = [
        [
            found.title,
            _KINDS[found.kind],
            f"{found.layer} of 0-{found.depth - 1}",
            f"{found.grid[0]} x {found.grid[1]}",
            f"{np.median(found.norms):.3g}",
            f"{found.norms.max():.3g}",
            f"{100 * found.shown_share:.2g} %",
            f"{100 * found.sample_share:.2g} %",
        ]
        for found in maps
    ]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)
