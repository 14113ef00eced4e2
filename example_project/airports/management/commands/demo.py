"""``manage.py demo``: the example project as a web page, or as a proof that ends by itself (``--once``)."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, connection

from example_project.airports.models import Airport, Country
from example_project.airports.proof.measure import observe, observe_first_reads
from example_project.airports.proof.reads import choose_subject, named_reads
from example_project.airports.proof.report import render_report
from example_project.airports.proof.run import prove
from example_project.database_url import EXAMPLES, DatabaseUrlError, parse_database_url
from live_cache.location import parse_location


class Command(BaseCommand):
    """Migrate, load, and then serve or prove."""

    help = "Show live querysets at work on the airports of the world, on SQLite, memory and disk unless told otherwise."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """See BaseCommand.add_arguments()."""
        parser.add_argument("--once", action="store_true", help="no server: measure, write, compare, and exit")
        parser.add_argument("--redis", metavar="URL", help="Redis in the place of the disk tier")
        parser.add_argument("--database", metavar="URL", help=EXAMPLES)
        parser.add_argument("--directory", metavar="PATH", help="where the default database and the disk tier live")
        parser.add_argument("--host", default="127.0.0.1", help="address to serve at (default: %(default)s)")
        parser.add_argument("--port", type=int, default=8000, help="port to serve at (default: %(default)s)")
        parser.add_argument("--limit", type=int, metavar="N", help="load about N airports instead of all")
        parser.add_argument("--no-load", action="store_true", help="take the rows that are there")
        parser.add_argument("--reset", action="store_true", help="delete every row and load them again")
        # What --once runs in a process of its own.
        parser.add_argument("--first-reads", action="store_true", help=argparse.SUPPRESS)

    def handle(self, **options: Any) -> None:
        """See BaseCommand.handle()."""
        self._start_again_with(_environment(options))
        if options["first_reads"]:
            self.stdout.write(observe_first_reads(named_reads(choose_subject())))
            return
        self._prepare(options)
        if options["once"]:
            self._prove()
        else:
            self._serve(options["host"], options["port"])

    def _start_again_with(self, environment: dict[str, str]) -> None:
        """Replace this process by one whose settings see *environment*, unless they did already."""
        if all(os.environ.get(name) == value for name, value in environment.items()):
            return
        self.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **environment})

    def _prepare(self, options: dict[str, Any]) -> None:
        tiers = " + ".join(tier.shown for tier in parse_location(settings.CACHES["default"]["LOCATION"]).tiers)
        self.stdout.write(f"Database: {connection.vendor}, {connection.settings_dict['NAME']}")
        self.stdout.write(f"Cache: {tiers}")
        try:
            if connection.vendor == "sqlite":
                Path(connection.settings_dict["NAME"]).resolve().parent.mkdir(parents=True, exist_ok=True)
            connection.ensure_connection()
            call_command("migrate", verbosity=0, interactive=False)
        except (DatabaseError, ImproperlyConfigured, OSError) as error:
            raise CommandError(f"The database cannot be used: {error}") from error
        # The first read of a table makes its clock, which holds entries back for one lease. Loading takes as long.
        observe(lambda: (Airport.objects.live().exists(), Country.objects.live().exists()))
        if not options["no_load"]:
            call_command("load_airports", limit=options["limit"], reset=options["reset"], stdout=self.stdout)

    def _prove(self) -> None:
        try:
            subject = choose_subject()
        except Airport.DoesNotExist as error:
            raise CommandError(str(error)) from error
        proof = prove(
            named_reads(subject), subject, child_arguments=["demo", "--once", "--first-reads"], say=self.stdout.write
        )
        self.stdout.write(render_report(proof))
        if proof.problems:
            sys.exit(1)

    def _serve(self, host: str, port: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        self.stdout.write(self.style.SUCCESS(f"Open http://{shown}:{port}/ (stop with Ctrl-C)"))
        self.stdout.flush()
        call_command("runserver", f"{shown}:{port}", use_reloader=False, use_ipv6=":" in host, skip_checks=True)


def _environment(options: dict[str, Any]) -> dict[str, str]:
    """Return the environment that the options ask for, after a look at whether it can work."""
    environment = {}
    if options["database"]:
        try:
            parse_database_url(options["database"])
        except DatabaseUrlError as error:
            raise CommandError(f"--database: {error}") from error
        environment["LIVE_CACHE_DEMO_DATABASE"] = options["database"]
    if options["redis"]:
        try:
            tier = parse_location(options["redis"]).farthest
        except ImproperlyConfigured as error:
            raise CommandError(f"--redis: {error}") from error
        if tier.kind != "redis":
            raise CommandError(f"--redis: {tier.shown!r} is no Redis. Write redis://127.0.0.1:6379/1.")
        environment["LIVE_CACHE_DEMO_REDIS"] = options["redis"]
    if options["directory"]:
        environment["LIVE_CACHE_DEMO_DIRECTORY"] = str(Path(options["directory"]).resolve())
    if options["host"] not in {"127.0.0.1", "localhost", "::1"}:
        environment["LIVE_CACHE_DEMO_HOST"] = options["host"]
    return environment
