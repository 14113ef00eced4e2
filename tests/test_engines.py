"""A table of MariaDB whose engine knows no transactions: what a ROLLBACK does not bring back is ticked after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connections, models, transaction

from live_cache import live, recording
from tests.made_models import made_models
from tests.servers import MISSING
from tests.testapp.models import MadeBook, Tag

ALIAS = "mariadb"
pytestmark = [
    pytest.mark.skipif(ALIAS in MISSING, reason="MARIADB IS MISSING"),
    pytest.mark.django_db(transaction=True, databases=[ALIAS]),
]


def execute(sql: str) -> None:
    with connections[ALIAS].cursor() as cursor:
        cursor.execute(sql)


@pytest.fixture(params=["MyISAM", "Aria"])
def engine(request: pytest.FixtureRequest, cache: str) -> Iterator[str]:
    """The engine of the table of MadeBook."""
    MadeBook.objects.using(ALIAS).create(title="old")
    options = " TRANSACTIONAL = 0" if request.param == "Aria" else ""
    execute(f"ALTER TABLE testapp_madebook ENGINE = {request.param}{options}")
    yield request.param
    execute("ALTER TABLE testapp_madebook ENGINE = InnoDB")


def live_titles() -> list[str]:
    return list(live(MadeBook.objects.using(ALIAS).order_by("pk")).values_list("title", flat=True))


def titles() -> list[str]:
    return list(MadeBook.objects.using(ALIAS).order_by("pk").values_list("title", flat=True))


def roll_back(write: Callable[[], object]) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic(using=ALIAS):  # noqa: PT012 - the end of atomic() is what is tested
        write()
        raise ZeroDivisionError


def roll_back_to_a_savepoint(write: Callable[[], object]) -> None:
    with transaction.atomic(using=ALIAS):
        roll_back(write)


def roll_back_by_hand(write: Callable[[], object]) -> None:
    transaction.set_autocommit(False, using=ALIAS)
    write()
    transaction.rollback(using=ALIAS)
    transaction.set_autocommit(True, using=ALIAS)


def roll_back_by_sql(write: Callable[[], object]) -> None:
    execute("BEGIN")
    write()
    execute("ROLLBACK")


@pytest.mark.parametrize("how", [roll_back, roll_back_to_a_savepoint, roll_back_by_hand, roll_back_by_sql])
@pytest.mark.parametrize("is_understood", [True, False], ids=["ORM", "not understood"])
def test_rows_that_a_rollback_leaves_are_seen(
    engine: str, how: Any, is_understood: bool, second_connection: Callable[[str], Any]
) -> None:
    """Every connection reads the row that stayed, and hits again."""
    other = second_connection(ALIAS)
    assert live_titles() == other.run(live_titles) == ["old"]

    def write() -> None:
        if is_understood:
            MadeBook.objects.using(ALIAS).update(title="kept")
        else:
            execute("BEGIN NOT ATOMIC UPDATE testapp_madebook SET title = 'kept'; END")

    how(write)
    assert titles() == ["kept"]
    assert other.run(live_titles) == ["kept"]
    connections[ALIAS].close()  # what is not understood leaves the session in doubt
    assert live_titles() == ["kept"]
    with recording() as reads:
        live_titles()
    assert reads[0].is_hit


def test_a_rollback_costs_other_tables_no_hits(engine: str) -> None:
    """Rows of InnoDB came back: nothing of them is ticked."""
    Tag.objects.using(ALIAS).create(name="red")
    tags = live(Tag.objects.using(ALIAS).order_by("pk"))
    list(tags.all())

    def write() -> None:
        MadeBook.objects.using(ALIAS).update(title="kept")
        Tag.objects.using(ALIAS).update(name="blue")

    roll_back(write)
    with recording() as reads:
        assert [tag.name for tag in tags.all()] == ["red"]
        assert live_titles() == ["kept"]
    assert [read.is_hit for read in reads] == [True, False]


def test_what_such_a_table_shows_of_an_open_transaction_is_no_link_set(engine: str) -> None:
    """A set could hold what is not declared yet, so none is read, and each row of the other table counts."""
    with made_models(ALIAS) as create_tables:

        class Rack(models.Model):
            room = models.IntegerField()

            class Meta:
                app_label = "testapp"

        class Copy(models.Model):
            rack = models.ForeignKey(Rack, on_delete=models.CASCADE, db_constraint=False)

            class Meta:
                app_label = "testapp"

        create_tables(Rack, Copy)
        racks, copies = Rack._base_manager.using(ALIAS), Copy._base_manager.using(ALIAS)

        def is_hit() -> bool:
            with recording() as records:
                found = list(live(copies.filter(rack__room=1)).values_list("pk", flat=True))
            assert found == list(copies.filter(rack__room=1).values_list("pk", flat=True))
            return records[-1].is_hit

        near, far = (racks.create(room=room) for room in (1, 2))
        copies.create(rack=near)
        hits = []
        for kind in ("InnoDB", engine):
            execute(f"ALTER TABLE {Rack._meta.db_table} ENGINE = {kind}")
            is_hit()
            copies.create(rack=far)
            hits.append(is_hit())
        assert hits == [True, False]
