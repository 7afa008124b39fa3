"""Numbers -> text, equally many decimals down a column."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

SMALL, LARGE = 1e-5, 1e7  # beyond these, powers of ten are shorter


class NumberFormat(NamedTuple):
    """How a column's numbers are written: value * factor with `decimals`, or in powers of ten where None."""

    factor: float
    decimals: int | None

    def mean(self, value: float) -> str:
        if self.decimals is None:
            return f"{value * self.factor:.2e}"
        text = f"{value * self.factor:.{self.decimals}f}"
        return text.removeprefix("-") if float(text) == 0 else text

    def difference(self, value: float) -> str:
        """With its sign, unless it is written as 0."""
        text = self.mean(value)
        return f"+{text}" if value > 0 and float(text) != 0 else text

    def spread(self, value: float) -> str:
        """One decimal more, or a bound, where a spread would otherwise look like none at all."""
        if self.decimals is None:
            return f"{value * self.factor:.2e}"
        for decimals in (self.decimals, self.decimals + 1):
            text = f"{value * self.factor:.{decimals}f}"
            if value == 0 or float(text) != 0:
                return text
        return f"<{10.0**-decimals:.{decimals}f}"


def number_format(
    unit: str, means: Iterable[float], spreads: Iterable[float] = (), decimals: int | None = None
) -> NumberFormat:
    """The format of a column: fractions as percentages with one decimal, others with three digits.

    The digits are those of the median, so that one outlier neither blurs nor stretches the others. Small
    percentages (a share of outliers, say) get decimals until two digits show; and where the median spread would
    be written with one decimal more than the mean, both get it. decimals: so many instead.
    """
    fraction = unit == "fraction"
    factor = 100.0 if fraction else 1.0
    sizes = sorted(abs(m) * factor for m in means if m)
    if sizes and sizes[-1] >= LARGE:
        return NumberFormat(factor, None)
    if decimals is not None or not sizes:
        return NumberFormat(factor, 1 if decimals is None else decimals)
    size = sizes[len(sizes) // 2]
    if size < SMALL:
        return NumberFormat(factor, None)
    digits = max(1 if fraction else 0, (2 if fraction else 3) - 1 - math.floor(math.log10(size)))
    wide = sorted(spread * factor for spread in spreads if spread)
    if wide and digits and float(f"{wide[len(wide) // 2]:.{digits}f}") == 0:
        digits += 1
    return NumberFormat(factor, digits)


def three_digits(value: float) -> str:
    """A cost for people: 0.0123, 1.23, 12.3, 123, 1234."""
    if value == 0:
        return "0"
    if not SMALL <= abs(value) < LARGE:
        return f"{value:.2e}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def shown_unit(unit: str) -> str:
    """What stands behind a column's name: "%" for a fraction."""
    return "%" if unit == "fraction" else unit
