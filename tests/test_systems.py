"""The table of tests that a system cannot run is true, and leaves nothing out on Linux."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from conftest import pytest_ignore_collect
from systems import NEEDS, below_tests, lacking

TESTS = Path(__file__).resolve().parent
POSIX_ALONE = {"fcntl", "grp", "pwd", "resource", "termios"}
WINDOWS_ALONE = {"msvcrt", "winreg", "_winapi"}


def test_on_linux_nothing_is_left_out():
    tests = [test for need in NEEDS for test in need.tests]
    fixtures = [fixture for need in NEEDS for fixture in need.fixtures]
    assert [test for test in tests if lacking(test, fixtures, "linux")] == []


@pytest.mark.parametrize("name", [test for need in NEEDS for test in need.tests])
def test_every_test_of_the_table_exists_and_is_left_out_elsewhere(name: str):
    file, _, test = name.partition("::")
    assert f"def {test}(" in (TESTS / file).read_text("utf-8") if test else (TESTS / file).is_file()
    assert lacking(f"{name}[some-value]" if test else f"{name}::test_some", (), "win32").startswith(
        "this system (win32)"
    )
    assert lacking("test_dev.py::test_every_verb_has_help", (), "win32") == ""


@pytest.mark.parametrize("name", [fixture for need in NEEDS for fixture in need.fixtures])
def test_every_fixture_of_the_table_exists(name: str):
    files = [TESTS / "conftest.py", *TESTS.rglob("test_*.py")]
    assert any(f"def {name}(" in path.read_text("utf-8") for path in files)
    (reason,) = [need.reason for need in NEEDS if name in need.fixtures]
    assert reason in lacking("some.py::test_some", [name], "darwin")


def test_every_file_can_be_imported_on_windows_too():
    """Modules that one kind of system has are imported where they are used, or by files that are not read elsewhere."""
    found = {below_tests(path): top_imports(path) for path in sorted(TESTS.rglob("*.py"))}
    assert {path: names & WINDOWS_ALONE for path, names in found.items() if names & WINDOWS_ALONE} == {}
    posix = {path: names & POSIX_ALONE for path, names in found.items() if names & POSIX_ALONE}
    assert [path for path in posix if not lacking(path, (), "win32")] == []


def top_imports(path: Path) -> set[str]:
    """The modules that are imported when a file is."""
    body = ast.parse(path.read_text("utf-8")).body
    named = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    return named | {node.module for node in body if isinstance(node, ast.ImportFrom) and node.module}


def test_a_file_that_only_linux_can_run_is_not_even_read_elsewhere(
    monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
):
    path = TESTS / "test_faults.py"
    assert pytest_ignore_collect(path, pytestconfig) is None
    monkeypatch.setattr("conftest.lacking", lambda test, fixtures=(): lacking(test, fixtures, "win32"))
    assert pytest_ignore_collect(path, pytestconfig) is True
    assert pytest_ignore_collect(TESTS / "test_dev.py", pytestconfig) is None
