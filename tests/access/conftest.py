"""The table of what was asked of each role and what was answered, printed at the end."""

import pytest

Row = tuple[str, str, str]
ROWS: list[Row] = []


@pytest.fixture
def table() -> list[Row]:
    return ROWS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_sep("-", "what each role may do")
    for role, call, answer in sorted(set(ROWS)):
        terminalreporter.write_line(f"{role:<8} {answer:<13} {call}")
