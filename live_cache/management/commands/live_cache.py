"""
``manage.py live_cache clear|stats|keys|explain|verify|doctor|install_triggers|listen``.

docs/reference/command.md describes each option.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from itertools import islice
from typing import Any

from django.core.exceptions import FieldError, ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import Model, QuerySet

from live_cache.assembly import Assembly, get_assembly, live_aliases, live_assemblies
from live_cache.conf import settings
from live_cache.exceptions import ConfigurationError, LiveCacheError
from live_cache.management import clearing, doctor, outbox, reports, sampling
from live_cache.management.tables import as_json, as_table
from live_cache.outbox.listener import INTERVAL_S
from live_cache.outbox.statistics import outbox_statistics
from live_cache.queryset import live

__all__ = ["Command"]


class Command(BaseCommand):
    """Look into the caches of live querysets, and clear them."""

    help = "Shows what live caches hold and why, and clears them."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the subcommands."""
        actions = parser.add_subparsers(
            dest="action", required=True, metavar="clear|stats|keys|explain|verify|doctor|install_triggers|listen"
        )
        self._add_clear(actions)
        self._add_stats(actions)
        self._add_keys(actions)
        self._add_explain(actions)
        self._add_verify(actions)
        parser = actions.add_parser("doctor", help="Run every check against the live servers, with latencies.")
        _add_common(parser, default=None)
        self._add_install_triggers(actions)
        self._add_listen(actions)

    def handle(self, *args: Any, **options: Any) -> None:
        """
        Run one subcommand.

        Raises:
            CommandError: A model, key, alias, field or value is unknown, or a store or the ledger does not answer.
        """
        try:
            getattr(self, f"_{options['action']}")(**options)
        except LiveCacheError as error:
            raise CommandError(str(error)) from error

    def _add_clear(self, actions: Any) -> None:
        parser = actions.add_parser("clear", help="Invalidate or drop entries.")
        target = parser.add_mutually_exclusive_group(required=True)
        target.add_argument("--model", metavar="app.Model", help="Invalidate every result that depends on its table.")
        target.add_argument("--key", help="Invalidate every result under this cache key.")
        target.add_argument("--prefix", help="Drop the entries whose key lies under this prefix. Scans.")
        target.add_argument("--all", action="store_true", help="Drop everything in this cache, plain values too.")
        parser.add_argument("--dry-run", action="store_true", help="Only say what would go.")
        parser.add_argument("--noinput", "--no-input", action="store_false", dest="interactive", help="Do not ask.")
        _add_common(parser, default="default")

    def _add_stats(self, actions: Any) -> None:
        parser = actions.add_parser("stats", help="Show tiers, ledger and counters.")
        _add_common(parser, default=None)

    def _add_keys(self, actions: Any) -> None:
        parser = actions.add_parser("keys", help="List the keys of live entries. Scans.")
        parser.add_argument("--prefix", default="", help="Only keys under this prefix, segment by segment.")
        parser.add_argument("--limit", type=_positive, default=100, help="At most so many keys (default: 100).")
        parser.add_argument("--all", action="store_true", help="Every key of the store, with its namespace.")
        _add_common(parser, default="default")

    def _add_explain(self, actions: Any) -> None:
        parser = actions.add_parser("explain", help="Say how a query is cached, or why it is not.")
        parser.add_argument("model", metavar="app.Model")
        parser.add_argument(
            "--filter", action="append", nargs="+", default=[], metavar="field=value", help="As in filter(field=value)."
        )
        parser.add_argument(
            "--order-by",
            action="append",
            default=[],
            metavar="field",
            help="As in order_by(field); several with commas. Descending with the sign =: --order-by=-created.",
        )
        parser.add_argument(
            "--rows", type=_slice, default=slice(None), metavar="START:STOP", help="As in queryset[START:STOP]."
        )
        parser.add_argument("--cache-key", metavar="KEY", help="As in live(cache_key=KEY).")
        _add_common(parser, default="default")

    def _add_install_triggers(self, actions: Any) -> None:
        parser = actions.add_parser("install_triggers", help="Let writers outside of Django be seen: by triggers.")
        parser.add_argument(
            "--model", action="append", default=[], metavar="app.Model", help="Only its tables. May be repeated."
        )
        parser.add_argument("--drop", action="store_true", help="Take the triggers away, and the outbox with the last.")
        parser.add_argument("--notify", action="store_true", help="On PostgreSQL, wake the listener by NOTIFY.")
        parser.add_argument("--dry-run", action="store_true", help="Only print the SQL.")
        _add_database(parser)
        _add_format(parser)

    def _add_listen(self, actions: Any) -> None:
        parser = actions.add_parser("listen", help="Tick what the triggers tell, until it is stopped.")
        parser.add_argument(
            "--interval",
            type=_seconds,
            default=INTERVAL_S,
            metavar="SECONDS",
            help=f"Between two looks at the outbox (default: {INTERVAL_S}).",
        )
        parser.add_argument("--once", action="store_true", help="Tick what waits, and end.")
        _add_database(parser)

    def _add_verify(self, actions: Any) -> None:
        parser = actions.add_parser("verify", help="Compare hits with the database now.")
        parser.add_argument(
            "--queryset",
            action="append",
            default=[],
            metavar="PATH",
            help="Dotted path of a queryset, or of a function that returns or reads some (default: LIVE_CACHE_VERIFY).",
        )
        _add_common(parser, default="default")

    def _clear(self, *, using: str, dry_run: bool, **options: Any) -> None:
        assembly = get_assembly(using)
        # An unreachable ledger keeps a tick until it answers; the process of a command does not live so long.
        assembly.ledger.clocks()
        if options["model"] is not None:
            model = clearing.find_model(options["model"])
            report = clearing.clear_model(assembly, model, is_dry_run=dry_run)
        elif options["key"] is not None:
            report = clearing.clear_key(assembly, options["key"], is_dry_run=dry_run)
        elif options["prefix"] is not None:
            report = clearing.clear_prefix(assembly, options["prefix"], is_dry_run=dry_run)
        else:
            if options["interactive"] and not dry_run:
                self._confirm(assembly)
            report = clearing.clear_all(assembly, is_dry_run=dry_run)
        self._write_cleared({"cache": using, "dry_run": dry_run, **report}, options["format"])

    def _stats(self, *, using: str | None, **options: Any) -> None:
        assemblies = live_assemblies() if using is None else (get_assembly(using),)
        if not assemblies:
            raise ConfigurationError("No alias in CACHES has the BACKEND live_cache.backend.LiveCache.")
        found = [reports.statistics_of(assembly) for assembly in assemblies]
        outboxes = outbox_statistics()
        if options["format"] == "json":
            self.stdout.write(as_json({"caches": found, "outboxes": outboxes}))
        else:
            parts = [reports.format_statistics(report) for report in found]
            self.stdout.write("\n\n".join(parts + [outbox.format_statistics(outboxes)] * bool(outboxes)))

    def _keys(self, *, using: str, prefix: str, limit: int, **options: Any) -> None:
        assembly = get_assembly(using)
        source = reports.stored_keys(assembly, prefix) if options["all"] else reports.live_keys(assembly, prefix)
        keys = list(islice(source, limit + 1))
        is_cut = len(keys) > limit
        keys = sorted(keys[:limit])
        if options["format"] == "json":
            self.stdout.write(as_json({"cache": using, "prefix": prefix, "keys": keys, "is_cut": is_cut}))
            return
        self.stdout.write(as_table(("key",), [[key] for key in keys]) if keys else "No keys.")
        if is_cut:
            self.stdout.write(f"More than {limit} keys; raise --limit to see them.")

    def _explain(self, *, using: str, model: str, **options: Any) -> None:
        get_assembly(using)
        conditions = [condition for group in options["filter"] for condition in group]
        order_by = [field for fields in options["order_by"] for field in fields.split(",")]
        queryset = _query(clearing.find_model(model), conditions, order_by)
        rows: slice = options["rows"]
        if rows != slice(None):
            queryset = queryset[rows]
        explanation = live(queryset, options["cache_key"], using_cache=using).live_explain()
        if options["format"] == "json":
            self.stdout.write(as_json(explanation.as_dict()))
        else:
            self.stdout.write(str(explanation))

    def _verify(self, *, using: str, queryset: list[str], **options: Any) -> None:
        assembly = get_assembly(using)
        reads = queryset or settings.verify
        if not reads:
            raise CommandError(
                "Name what to read: --queryset shop.queries.front_page, or the setting LIVE_CACHE_VERIFY."
            )
        lines = sampling.sample(assembly, reads)
        self.stdout.write(
            as_json({"cache": using, "reads": lines}) if options["format"] == "json" else sampling.format_samples(lines)
        )
        different = sum(line["result"] == "different" for line in lines)
        if different:
            raise CommandError(
                f"{different} of {len(lines)} reads differ from the database. Their entries are dropped."
            )

    def _doctor(self, *, using: str | None, **options: Any) -> None:
        report = doctor.examine(live_aliases() if using is None else (using,))
        broken = [cache["alias"] for cache in report["caches"] if cache["error"]]
        broken += [cache["alias"] for cache in report["caches"] if any(part["error"] for part in cache["parts"])]
        self.stdout.write(as_json(report) if options["format"] == "json" else doctor.format_examination(report))
        if report["errors"] or broken:
            raise CommandError(f"{report['errors']} errors, {len(broken)} caches with a part that does not work.")

    def _install_triggers(self, *, database: str, drop: bool, dry_run: bool, notify: bool, **options: Any) -> None:
        report = outbox.change_triggers(database, options["model"], is_drop=drop, is_dry_run=dry_run, notifies=notify)
        if options["format"] == "json":
            self.stdout.write(as_json(report))
        elif dry_run:
            self.stdout.write("\n\n".join(f"{statement};" for statement in report["statements"]))
        else:
            self.stdout.write(f"{'Dropped' if drop else 'Installed'} the triggers of {len(report['tables'])} tables:")
            self.stdout.write("".join(f"  {table}\n" for table in report["tables"]))

    def _listen(self, *, database: str, interval: float, once: bool, **options: Any) -> None:
        count = outbox.listen(database, interval_s=interval, is_once=once, say=self.stdout.write)
        if once:
            self.stdout.write(f"Ticked {count} lines of the outbox.")

    def _confirm(self, assembly: Assembly) -> None:
        self.stdout.write(
            f"This drops every live entry and every plain value of the cache {assembly.alias!r}, in all processes."
        )
        if input("Type 'yes' to go on: ") != "yes":
            raise CommandError("Nothing was cleared.")

    def _write_cleared(self, report: dict[str, Any], output_format: str) -> None:
        if output_format == "json":
            self.stdout.write(as_json(report))
            return
        names = [name for name in ("what", "name", "table", "entries", "clocks") if name in report]
        self.stdout.write("Would clear:" if report["dry_run"] else "Cleared:")
        self.stdout.write(as_table(names, [[_shown(report[name]) for name in names]]))


def _add_common(parser: CommandParser, *, default: str | None) -> None:
    shown = "every alias with our backend" if default is None else default
    parser.add_argument("--using", default=default, metavar="ALIAS", help=f"Alias in CACHES (default: {shown}).")
    _add_format(parser)


def _add_database(parser: CommandParser) -> None:
    parser.add_argument("--database", default="default", metavar="ALIAS", help="Alias in DATABASES (default: default).")


def _add_format(parser: CommandParser) -> None:
    parser.add_argument("--format", choices=("table", "json"), default="table", help="Output (default: table).")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 3600:
        raise ArgumentTypeError(f"{text!r} is no number of seconds, more than 0 and less than 3600")
    return seconds


def _slice(text: str) -> slice:
    start, colon, stop = text.partition(":")
    if not colon or not all(part == "" or part.isdigit() for part in (start, stop)):
        raise ArgumentTypeError(f"{text!r} is no START:STOP of whole numbers, such as 40:60")
    return slice(int(start) if start else None, int(stop) if stop else None)


def _shown(value: Any) -> Any:
    return ", ".join(f"{name} {n}" for name, n in value.items()) if isinstance(value, dict) else value


def _query(model: type[Model], conditions: list[str], order_by: list[str]) -> QuerySet[Model]:
    """
    Return the queryset that the options of ``explain`` describe.

    Raises:
        CommandError: A condition is not ``field=value``, a field is unknown, or a value does not fit its field.
    """
    lookups = dict(_condition(condition) for condition in conditions)
    try:
        queryset = model._default_manager.filter(**lookups)
        return queryset.order_by(*order_by) if order_by else queryset
    except FieldError as error:
        raise CommandError(f"{model._meta.label}: {error}") from error
    except (ValidationError, ValueError, TypeError) as error:
        raise CommandError(f"{model._meta.label}: a value does not fit its field: {error}") from error


def _condition(condition: str) -> tuple[str, Any]:
    field, equals, value = condition.partition("=")
    if not equals or not field:
        raise CommandError(f"--filter {condition!r} is not field=value, for example category_id=7.")
    if field.endswith(("__in", "__range")):
        return field, value.split(",")
    if field.endswith("__isnull"):
        return field, value.lower() in {"true", "1", "yes"}
    return field, value
