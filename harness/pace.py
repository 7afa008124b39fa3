"""How fast a training goes and how long it still takes: kept beside its checkpoint for whoever looks on. No torch."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds in words, in one unit.

    >>> duration(40), duration(600), duration(11520), duration(500000)
    ('40 s', '10 min', '3.2 h', '5.8 days')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.3g} h" if seconds < 48 * 3600 else f"{seconds / 86400:.3g} days"
