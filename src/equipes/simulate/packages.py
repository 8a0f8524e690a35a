"""Packages that only some workflows need."""

from __future__ import annotations

from importlib.util import find_spec

from equipes.errors import InputError


def require(what: str, extra: str, *packages: str) -> None:
    """Raises `InputError` that says what to install when one of `packages` is missing.

    >>> require("a sum", "sums", "math")
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise InputError(
            f"{what} needs the package{'s' if len(missing) > 1 else ''} {', '.join(missing)};"
            f" pip install 'equipes[{extra}]'"
        )
