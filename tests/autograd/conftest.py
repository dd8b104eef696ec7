"""Lets the tests of this folder import its table of cases, and prints what the gradient checks found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

REPORTS = pytest.StashKey[dict]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORTS] = {}


@pytest.fixture
def gradient_reports(pytestconfig: pytest.Config) -> dict:
    """Where the gradient checks leave their reports for the summary."""
    return pytestconfig.stash[REPORTS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    reports = config.stash.get(REPORTS, {})
    if reports:
        from gradient_report import summary

        terminalreporter.section("gradient checks")
        terminalreporter.line(summary(reports))
