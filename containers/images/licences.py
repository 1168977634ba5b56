"""Which licences would bind whoever passes an image on: those of the GPL family, and those that forbid some uses."""

from __future__ import annotations

import re
from collections.abc import Callable

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

# Of a single licence, by SPDX identifier or in words. The LGPL is not among them.
_BINDS = re.compile(
    r"\bA?GPL|\bAffero\b|(?<!Lesser )(?<!Library )\bGeneral Public Licen[cs]e"
    r"|\bSSPL|\bServer Side Public\b|\bBUSL|\bBusiness Source\b|\bCC-BY-NC|\bnon-?commercial",
    re.IGNORECASE,
)
# What takes the effect from it for whoever only links.
_LINKING = re.compile(
    r"GCC-exception|GCC Runtime Library Exception|Classpath-exception|linking exception", re.IGNORECASE
)


def is_refused(licence: str) -> bool:
    """True where every choice of ``licence`` (SPDX expression or a name in words) is a refused licence."""
    text = " ".join(licence.split())
    try:
        expression = str(canonicalize_license_expression(text))
    except InvalidLicenseExpression:
        return _binds(text)
    tokens = re.findall(r"\(|\)|\bAND\b|\bOR\b|[^()\s]+(?: WITH [^()\s]+)?", expression)
    return _any_of(tokens)


def _any_of(tokens: list[str]) -> bool:
    """a OR b: refused when all are. Takes what it reads from ``tokens``."""
    return all(_joined(tokens, "OR", _all_of))


def _all_of(tokens: list[str]) -> bool:
    """a AND b: refused when one is."""
    return any(_joined(tokens, "AND", _one))


def _joined(tokens: list[str], word: str, part: Callable[[list[str]], bool]) -> list[bool]:
    """What ``part`` says of each operand between these words."""
    refused = [part(tokens)]
    while tokens and tokens[0] == word:
        tokens.pop(0)
        refused.append(part(tokens))
    return refused


def _one(tokens: list[str]) -> bool:
    token = tokens.pop(0)
    if token != "(":
        return _binds(token)
    refused = _any_of(tokens)
    tokens.pop(0)  # the closing one; the expression is known to be valid
    return refused


def _binds(licence: str) -> bool:
    return bool(_BINDS.search(licence)) and not _LINKING.search(licence)
