"""Licences that the images must not have, however they are written."""

from __future__ import annotations

import pytest

from images.licences import is_refused


@pytest.mark.parametrize(
    "licence",
    [
        "GPL-3.0-or-later",
        "AGPL-3.0-only",
        "GPL",
        "GPLv3+",
        "GNU GENERAL PUBLIC LICENSE",
        "GNU General  Public\nLicense v2 or later (GPLv2+)",
        "GNU Affero General Public License v3",
        "License :: OSI Approved :: GNU General Public License v3 or later (GPLv3+)",
        "License :: OSI Approved :: GNU Affero General Public License v3 (AGPLv3)",
        "A licence whose name is so long that sixty characters are not enough to hold all of it (GPLv3)",
        "GPL-3.0-only AND LGPL-2.1-only",
        "MIT AND (GPL-2.0-only OR AGPL-3.0-only)",
        "MIT AND GPL-2.0-or-later OR GPL-3.0-only",
        "GPL-3.0-or-later WITH GCC-exception-3.1 AND GPL-2.0-only",
        "SSPL-1.0",
        "BUSL-1.1",
        "Business Source License 1.1",
        "CC-BY-NC-4.0",
        "Free for non-commercial use",
    ],
)
def test_refused(licence: str) -> None:
    assert is_refused(licence)


@pytest.mark.parametrize(
    "licence",
    [
        "MIT",
        "Apache-2.0",
        "LGPL-2.1-only",
        "GNU LESSER GENERAL PUBLIC LICENSE",
        "GNU Library General Public License (LGPL)",
        "License :: OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)",
        "MIT OR GPL-2.0-only",
        "GPL-2.0-only OR MIT AND Apache-2.0",
        "(GPL-2.0-only OR MIT) AND BSD-3-Clause",
        "GPL-3.0-or-later WITH GCC-exception-3.1",
        "BSD-3-Clause AND GPL-3.0-or-later WITH GCC-exception-3.1",
        "BSD 3-Clause License",
        "unknown",
        "",
    ],
)
def test_accepted(licence: str) -> None:
    assert not is_refused(licence)
