"""``manage.py load_airports``: fill the tables from the airportsdata package."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from example_project.airports.source import load_airports, remove_airports


class Command(BaseCommand):
    """Insert what is missing; run it again at any time."""

    help = "Load the airports of the world (about 28,000) and their countries. Rows that exist stay as they are."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See BaseCommand.add_arguments()."""
        parser.add_argument("--limit", type=int, metavar="N", help="load about N airports, spread over the world")
        parser.add_argument("--reset", action="store_true", help="delete every airport and country first")

    def handle(self, **options: Any) -> None:
        """See BaseCommand.handle()."""
        limit = options["limit"]
        if limit is not None and limit < 1:
            raise CommandError(f"--limit must be 1 or more, not {limit}.")
        started = time.perf_counter()
        if options["reset"]:
            self.stdout.write(f"Deleted {remove_airports():,} airports.")
        count = load_airports(limit=limit, progress=self._show if self.stdout.isatty() else None)
        if self.stdout.isatty():
            self.stdout.write("\r\033[K", ending="")
        self.stdout.write(f"Loaded {count:,} airports in {time.perf_counter() - started:.1f} s.")

    def _show(self, done: int, total: int) -> None:
        self.stdout.write(f"\rLoading airports: {done:,} of {total:,}", ending="")
        self.stdout.flush()
