"""Numbers as a person reads them."""

from __future__ import annotations

from decimal import Decimal


def gigabytes_text(count_bytes: float) -> str:
    """As cards are sold: one of 8 GB has 8 * 2**30 bytes."""
    return f"{count_bytes / 2**30:.1f} GB"


def number_text(number: float) -> str:
    """Every digit and no exponent: 3e-05 is 0.00003."""
    text = format(Decimal(repr(float(number))), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
