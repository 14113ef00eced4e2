"""GenericRelation: its managers and what is asked through it are cached, and see every write to the other side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.contenttypes.fields import GenericForeignKey, GenericRelation
from django.contrib.contenttypes.models import ContentType
from django.db import models
from django.db.models import Avg, Count, Exists, OuterRef, Prefetch

from live_cache import LiveManager, live
from tests.made_models import made_models
from tests.test_queryset import queries_of
from tests.test_read_surface import rows_of
from tests.testapp.models import Review


def make_models() -> tuple[Any, Any]:
    class Note(models.Model):
        content_type = models.ForeignKey(ContentType, models.CASCADE)
        object_id = models.PositiveIntegerField()
        target = GenericForeignKey()
        text = models.CharField(max_length=20)

        objects = LiveManager()

        class Meta:
            app_label = "testapp"

    class Article(models.Model):
        title = models.CharField(max_length=20)
        notes = GenericRelation(Note, related_query_name="article")
        reviews = GenericRelation(Review)

        class Meta:
            app_label = "testapp"

    return Note, Article


@pytest.fixture
def articles(alias: str, cache: str) -> Iterator[Any]:
    """Two articles with notes and reviews; a review of something else has the same object_id."""
    ContentType.objects.clear_cache()  # emptied tables have other keys
    with made_models(alias) as create_tables:
        note, article = make_models()
        create_tables(note, article)
        types = ContentType.objects.db_manager(alias)
        for model in (note, article):
            # Django asks the default database for the key of the type, whatever database the rows are in.
            ContentType.objects._add_to_cache("default", types.get_for_model(model))
        other = types.get_for_model(note)
        for title in ("one", "two"):
            made = article.objects.using(alias).create(title=title)
            made.notes.create(text=f"about {title}")
            for stars in (2, 5):
                made.reviews.create(stars=stars)
            Review.objects.using(alias).create(content_type=other, object_id=str(made.pk), stars=1)
        yield article.objects.using(alias).order_by("pk")
    ContentType.objects.clear_cache()


def with_related(articles: Any) -> list[Any]:
    return [(row.title, rows_of(row.reviews.all()), rows_of(row.notes.all())) for row in articles]


# What is read from the articles; live() is put around each queryset by the second argument.
READS: dict[str, Callable[[Any, Any], Any]] = {
    "manager": lambda articles, as_live: rows_of(as_live(articles[0].reviews.order_by("pk"))),
    "manager itself": lambda articles, as_live: sorted(row.stars for row in as_live(articles[0].reviews)),
    "manager, filtered": lambda articles, as_live: rows_of(as_live(articles[0].reviews.filter(stars__gt=2))),
    "manager, count": lambda articles, as_live: as_live(articles[0].reviews).count(),
    "manager, aggregate": lambda articles, as_live: as_live(articles[0].reviews).aggregate(Avg("stars")),
    "filter through it": lambda articles, as_live: rows_of(as_live(articles.filter(reviews__stars__lt=3))),
    "exclude through it": lambda articles, as_live: rows_of(as_live(articles.exclude(notes__text="about one"))),
    "annotate": lambda articles, as_live: rows_of(
        as_live(articles.annotate(n=Count("reviews"), m=Avg("reviews__stars")))
    ),
    "values": lambda articles, as_live: rows_of(
        as_live(articles.values_list("title", "reviews__stars").order_by("pk", "reviews"))
    ),
    "order": lambda articles, as_live: rows_of(as_live(articles.order_by("-reviews__stars", "-reviews__pk"))),
    "subquery": lambda articles, as_live: rows_of(
        as_live(articles.filter(Exists(Review.objects.using(articles.db).filter(article_reviews(), stars=2))))
    ),
    "prefetch": lambda articles, as_live: with_related(as_live(articles.prefetch_related("reviews", "notes"))),
    "prefetch of a queryset": lambda articles, as_live: [
        rows_of(row.good)
        for row in as_live(
            articles.prefetch_related(Prefetch("reviews", Review.objects.filter(stars__gt=2), to_attr="good"))
        )
    ],
}  # fmt: skip


def article_reviews() -> Any:
    return models.Q(object_id=models.functions.Cast(OuterRef("pk"), models.CharField()))


# Each changes what every read above yields, but the ones about other rows.
WRITES: dict[str, Callable[[Any], object]] = {
    "create": lambda articles: articles[0].reviews.create(stars=0) and articles[1].reviews.create(stars=4),
    "update": lambda articles: articles[0].reviews.filter(stars=2).update(stars=3),
    "save": lambda articles: save(articles[0].reviews.order_by("pk")[0], 4),
    "add of another's": lambda articles: articles[1].reviews.add(articles[0].reviews.get(stars=2)),
    "remove": lambda articles: articles[0].reviews.remove(articles[0].reviews.get(stars=2)),
    "clear": lambda articles: articles[0].reviews.clear(),
    "set": lambda articles: articles[0].reviews.set([articles[0].reviews.get(stars=5)]),
    "delete of the object": lambda articles: articles[0].delete(),
    "delete of all objects": lambda articles: articles.delete(),
}


def save(review: Any, stars: int) -> None:
    review.stars = stars
    review.save()


@pytest.mark.parametrize("name", READS)
def test_read(alias: str, articles: Any, name: str) -> None:
    """The second read makes no query and equals the database; so does the read after each write."""
    found = list(articles)

    class Articles:
        """The articles, without a query for those that are asked for by index."""

        def __getattr__(self, attribute: str) -> Any:
            return getattr(articles, attribute)

        def __getitem__(self, index: int) -> Any:
            return found[index]

    def read(as_live: Callable[[Any], Any]) -> Any:
        return READS[name](Articles(), as_live)

    expected = read(lambda queryset: queryset.all())
    assert read(live) == expected
    assert queries_of(alias, lambda: read(live)) == (expected, 0)
    articles[0].reviews.filter(stars=2).update(stars=7)
    articles[0].reviews.create(stars=4)
    articles[0].notes.update(text="changed")
    changed = read(lambda queryset: queryset.all())
    assert changed != expected
    assert read(live) == changed
    assert queries_of(alias, lambda: read(live)) == (changed, 0)


@pytest.mark.parametrize("name", WRITES)
def test_write_is_seen(alias: str, articles: Any, name: str) -> None:
    """Whatever changes the rows behind a GenericRelation."""

    def read(as_live: Callable[[Any], Any]) -> list[Any]:
        return [
            READS[each](articles, as_live)
            for each in ("filter through it", "annotate", "values", "prefetch")
        ] + [rows_of(as_live(Review.objects.using(alias).order_by("pk")))]  # fmt: skip

    before = read(live)
    assert read(live) == before
    WRITES[name](articles)
    after = read(lambda queryset: queryset.all())
    assert after != before
    assert read(live) == after


def test_manager_has_live_where_the_model_has(alias: str, articles: Any) -> None:
    """A GenericRelation to a model with a LiveManager."""
    article = articles[0]
    assert [note.text for note in article.notes.live()] == ["about one"]
    found, query_count = queries_of(alias, lambda: [note.text for note in article.notes.live()])
    assert (found, query_count) == (["about one"], 0)
    article.notes.create(text="more")
    assert sorted(note.text for note in article.notes.live()) == ["about one", "more"]


def test_a_key_that_is_a_text_on_the_other_side(alias: str, articles: Any) -> None:
    """Of many rows at once those are found, too, whose key is written in another type."""
    if alias == "postgresql":
        pytest.skip("PostgreSQL compares no number with a text.")
    for _ in range(12):
        articles[0].reviews.create(stars=2)
    found = articles.filter(pk=articles[0].pk, reviews__stars=2)
    assert len(live(found)) == len(found.all()) == 13
    Review.objects.using(alias).filter(object_id=str(articles[0].pk)).update(stars=4)
    assert len(live(found)) == len(found.all()) == 0
