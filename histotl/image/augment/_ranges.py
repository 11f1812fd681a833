"""Checks of what augmentations are given."""

from __future__ import annotations

from histotl.core.errors import UsageError


def check_range(spec: str, name: str, value: float, least: float, most: float) -> None:
    """Refuse a number outside a range (both ends belong to it), or one that is none.

    Args:
        spec: The augmentation, for the message.
        name: Of its argument.
        value: What was given.
        least: Smallest good value.
        most: Largest good value.

    Raises:
        UsageError: It is outside.
    """
    if not least <= value <= most:
        raise UsageError(f"{spec}: {name} is {value}", hint=f"give a number from {least:g} to {most:g}")
