"""Commands in the tests obey no settings but their own."""

import os

import pytest


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in os.environ:
        if name.startswith(("LIPCERT_", "GITHUB_")) and not name.startswith("LIPCERT_TEST_"):
            monkeypatch.delenv(name)
