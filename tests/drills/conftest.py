"""What the drills have measured, printed in the end."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    said = [
        f"{report.nodeid.rpartition('::')[2]}: {f'{name}: {value:.0f}' if name else value}"
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
    ]
    if said:
        terminalreporter.section("measured")
        for line in said:
            terminalreporter.line(line)
