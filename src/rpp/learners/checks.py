"""Checks of a learner's settings."""

from __future__ import annotations

import math

from rpp.types import InputError


def check_smallest(**limits: tuple[int, int]) -> None:
    """Refuse settings below the least they can be.

    Args:
        limits: The value given and the least, by name of the setting.

    Raises:
        InputError: For the first that is too small.
    """
    for name, (given, smallest) in limits.items():
        if given < smallest:
            raise InputError(f"model.{name} is {given}: at least {smallest} is needed")


def check_fraction(**numbers: float) -> None:
    """Refuse settings that are not numbers from 0 to 1.

    Args:
        numbers: The value given, by name of the setting.

    Raises:
        InputError: For the first that is not.
    """
    for name, given in numbers.items():
        if not 0 <= given <= 1:
            raise InputError(f"model.{name} is {given}: give a number from 0 to 1")


def check_positive(**numbers: float) -> None:
    """Refuse settings that are not finite numbers above 0.

    Args:
        numbers: The value given, by name of the setting.

    Raises:
        InputError: For the first that is not.
    """
    for name, given in numbers.items():
        if not 0 < given < math.inf:
            raise InputError(f"model.{name} is {given}: give a number above 0")
