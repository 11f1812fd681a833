"""Every registered plug-in keeps its kind's contract; a new file is found here without an edit."""

from __future__ import annotations

import pytest

from histotl.core.registry import PLUGIN_FOLDERS
from tests.contracts import CHECKS, names


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in PLUGIN_FOLDERS for name in names(kind)])
def test_contract(kind: str, name: str) -> None:
    CHECKS[kind](name)
