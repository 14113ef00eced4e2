"""The matrix of Python and Django versions: ``pipx run nox`` runs all that this machine has a Python for."""

from __future__ import annotations

import nox

__all__ = ["tests"]

nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True

MATRIX = [
    ("3.11", "5.2"),
    *[(python, django) for python in ("3.12", "3.13") for django in ("5.2", "6.0", "6.1")],
]


@nox.session
@nox.parametrize("python,django", MATRIX)
def tests(session: nox.Session, django: str) -> None:
    """Run the tests on the newest patch release of *django*."""
    groups = nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), "test")
    session.install(f"django~={django}.0", *groups, ".[all]")
    session.run("python", "-m", "pytest", "--timeout=300", *session.posargs)
