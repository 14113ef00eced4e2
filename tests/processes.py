"""
Python code in a fresh process, with the databases, servers and settings of this one.

``python -m tests.processes`` is the other end: it sets Django up and runs what it is told to.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import settings as test_settings

__all__ = ["Process", "ProcessFailedError", "ProcessResult", "Processes"]

_ROOT = Path(__file__).resolve().parent.parent


class ProcessFailedError(AssertionError):
    """The process ended with another exit status than 0. The message holds what it wrote."""


@dataclass(frozen=True, kw_only=True)
class ProcessResult:
    """What is left of a process that has ended."""

    returncode: int
    stdout: str
    stderr: str
    value: Any
    """What the function returned, or what the script left in ``result``; None otherwise."""


class Process:
    """A running process. Processes.close() kills it if it is still there."""

    def __init__(self, popen: subprocess.Popen[str], value_path: Path) -> None:
        self.popen = popen
        self.pid = popen.pid
        self._value_path = value_path

    def wait(self, timeout_s: float = 30, *, check: bool = True) -> ProcessResult:
        """
        Return how the process ended.

        Raises:
            ProcessFailedError: Its exit status is not 0, and *check* is true.
            subprocess.TimeoutExpired: It is still running; it is killed then.
        """
        try:
            stdout, stderr = self.popen.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        value = json.loads(self._value_path.read_text() or "null") if self._value_path.exists() else None
        if check and self.popen.returncode:
            raise ProcessFailedError(f"exit status {self.popen.returncode}\n{stdout}\n{stderr}")
        return ProcessResult(returncode=self.popen.returncode, stdout=stdout, stderr=stderr, value=value)

    def kill(self) -> None:
        """Kill it with SIGKILL: nothing of it runs any more, no handler and no finally."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGKILL)
        self.popen.wait(10)


class Processes:
    """
    Starts processes; the object behind the fixture ``run_process``.

    A target is a function of a module (given as itself or as ``"package.module:function"``), or a script as text, which
    finds its arguments in ``args`` and may leave a value in ``result``. Arguments and values travel as JSON.
    """

    def __init__(self) -> None:
        self._running: list[Process] = []
        # Inside the directory of the run, which is removed even if this process is killed.
        self._directory = tempfile.TemporaryDirectory(prefix="process-", dir=test_settings.RUN_DIRECTORY)

    def __call__(
        self,
        target: str | Callable[..., Any],
        *args: Any,
        timeout_s: float = 30,
        check: bool = True,
        settings: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> ProcessResult:
        """Run *target* and return how it ended. See start() and Process.wait()."""
        return self.start(target, *args, settings=settings, env=env).wait(timeout_s, check=check)

    def start(
        self,
        target: str | Callable[..., Any],
        *args: Any,
        settings: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """
        Start *target* and do not wait for it.

        Args:
            settings: Django settings for the process, besides CACHES and every LIVE_CACHE_* setting in force here.
            env: Environment variables besides those of this process.
        """
        if callable(target):
            target = f"{target.__module__}:{target.__qualname__}"
        value_path = Path(self._directory.name) / f"{len(self._running)}.json"
        task = {"target": target, "args": args, "value_path": str(value_path)}
        popen = subprocess.Popen(
            [sys.executable, "-m", "tests.processes", json.dumps(task)],
            cwd=_ROOT,
            env={**os.environ, "LIVE_CACHE_TEST_CHILD": json.dumps(_inheritance(settings or {})), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        process = Process(popen, value_path)
        self._running.append(process)
        return process

    def close(self) -> None:
        """Kill what still runs."""
        for process in self._running:
            process.kill()
            for stream in (process.popen.stdout, process.popen.stderr):
                if stream:
                    stream.close()
        self._directory.cleanup()


def _inheritance(extra: Mapping[str, Any]) -> dict[str, Any]:
    from django.conf import settings
    from django.db import connections

    inherited = {name: getattr(settings, name) for name in dir(settings) if name.startswith("LIVE_CACHE_")}
    return {
        "run_id": test_settings.RUN_ID,
        "run_directory": str(test_settings.RUN_DIRECTORY),
        "databases": {alias: str(connections[alias].settings_dict["NAME"]) for alias in connections},
        "settings": {"CACHES": settings.CACHES, **inherited, **extra},
    }


def _main() -> None:
    task = json.loads(sys.argv[1])
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import django

    django.setup()
    target: str = task["target"]
    module_name, colon, function_path = target.partition(":")
    if colon and "\n" not in target and " " not in target:
        function: Any = importlib.import_module(module_name)
        for name in function_path.split("."):
            function = getattr(function, name)
        value = function(*task["args"])
    else:
        namespace: dict[str, Any] = {"__name__": "__main__", "args": task["args"]}
        exec(compile(target, "<script>", "exec"), namespace)
        value = namespace.get("result")
    Path(task["value_path"]).write_text(json.dumps(value))


if __name__ == "__main__":
    _main()
