"""
A small bookshop, and one model for each way in which a Django model can be unusual.

There are no migrations: the test databases get these tables by run_syncdb.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Any, ClassVar, Self
from uuid import uuid4

from django.contrib.contenttypes.fields import GenericForeignKey
from django.contrib.contenttypes.models import ContentType
from django.db import models
from django.utils import timezone

from live_cache import LiveManager

__all__ = [
    "AllFields",
    "Author",
    "Book",
    "BookPlace",
    "Category",
    "CheapBook",
    "Country",
    "Currency",
    "Ebook",
    "LegacyTag",
    "Library",
    "LoadedBook",
    "MadeBook",
    "Part",
    "PartFit",
    "Profile",
    "Review",
    "Seat",
    "Shelf",
    "Tag",
    "Ticket",
    "Timestamped",
]


class Country(models.Model):
    """Has a character primary key."""

    code = models.CharField(max_length=2, primary_key=True)
    name = models.CharField(max_length=100)
    population = models.BigIntegerField(default=0)


class Author(models.Model):
    name = models.CharField(max_length=100)
    country = models.ForeignKey(Country, models.SET_NULL, null=True, blank=True, related_name="authors")

    objects: ClassVar[LiveManager[Author]] = LiveManager()


class Category(models.Model):
    name = models.CharField(max_length=100)
    slug = models.SlugField(unique=True)
    parent = models.ForeignKey("self", models.CASCADE, null=True, blank=True, related_name="children")


class Tag(models.Model):
    name = models.CharField(max_length=50)


class Book(models.Model):
    title = models.CharField(max_length=200)
    author = models.ForeignKey(Author, models.CASCADE, related_name="books")
    category = models.ForeignKey(Category, models.PROTECT, null=True, blank=True, related_name="books")
    tags = models.ManyToManyField(Tag, related_name="books", blank=True)
    price = models.DecimalField(max_digits=10, decimal_places=2, default=0)
    rating = models.FloatField(null=True, blank=True)
    pages = models.IntegerField(default=0)
    published = models.DateField(null=True, blank=True)
    created = models.DateTimeField(default=timezone.now)
    in_print = models.BooleanField(default=True)
    isbn = models.UUIDField(default=uuid4)
    data = models.JSONField(null=True, blank=True)

    objects: ClassVar[LiveManager[Book]] = LiveManager()


class CheapBookManager(models.Manager["CheapBook"]):
    """Shows books under ten only."""

    def get_queryset(self) -> models.QuerySet[CheapBook]:
        """Return the cheap books."""
        return super().get_queryset().filter(price__lt=10)


class CheapBook(Book):
    """A proxy with a manager that filters."""

    objects: ClassVar[Any] = CheapBookManager()

    class Meta:
        proxy = True


class Ebook(Book):
    """A child in multi-table inheritance."""

    format = models.CharField(max_length=10, default="epub")
    size_bytes = models.PositiveBigIntegerField(default=0)


class Profile(models.Model):
    author = models.OneToOneField(Author, models.CASCADE, related_name="profile")
    bio = models.TextField(blank=True)


class Timestamped(models.Model):
    """An abstract base whose fields change by themselves."""

    created = models.DateTimeField(auto_now_add=True)
    modified = models.DateTimeField(auto_now=True)

    class Meta:
        abstract = True


class Library(Timestamped):
    """Uses the abstract base, and a many-to-many field with a model of its own between."""

    name = models.CharField(max_length=100)
    books = models.ManyToManyField(Book, through="BookPlace", related_name="libraries")


class BookPlace(models.Model):
    library = models.ForeignKey(Library, models.CASCADE)
    book = models.ForeignKey(Book, models.CASCADE)
    copies = models.PositiveIntegerField(default=1)


class Shelf(models.Model):
    """Is ordered through two relations."""

    label = models.CharField(max_length=20)
    book = models.ForeignKey(Book, models.CASCADE, related_name="shelves")

    class Meta:
        ordering = ("book__author__name", "label")


class Currency(models.Model):
    """Has a key that other models refer to, and it is not the primary key."""

    symbol = models.CharField(max_length=3, unique=True)
    rate = models.DecimalField(max_digits=20, decimal_places=10, default=1)
    country = models.ForeignKey(Country, models.CASCADE, null=True, blank=True)
    pegged_to = models.ForeignKey("self", models.SET_NULL, to_field="symbol", null=True, blank=True)


class Review(models.Model):
    """Refers to a row of any model."""

    content_type = models.ForeignKey(ContentType, models.CASCADE)
    object_id = models.CharField(max_length=40)
    target = GenericForeignKey("content_type", "object_id")
    stars = models.PositiveSmallIntegerField(default=0)


class Seat(models.Model):
    """Has a primary key of two columns."""

    pk = models.CompositePrimaryKey("hall", "number")
    hall = models.CharField(max_length=20)
    number = models.IntegerField()
    taken = models.BooleanField(default=False)


class Ticket(models.Model):
    """Refers to a primary key of two columns."""

    hall = models.CharField(max_length=20)
    number = models.IntegerField()
    seat = models.ForeignObject(Seat, models.CASCADE, from_fields=("hall", "number"), to_fields=("hall", "number"))


class LoadedBook(models.Model):
    """Has a from_db of its own, which marks the instance."""

    title = models.CharField(max_length=100)
    loaded: dict[str, Any]

    @classmethod
    def from_db(cls, db: str | None, field_names: Collection[str], values: Collection[Any], **options: Any) -> Self:
        """Remember what came from the database. Django 6.1 adds an option."""
        instance = super().from_db(db, field_names, values, **options)
        instance.loaded = dict(zip(field_names, values, strict=False))
        return instance


class MadeBook(models.Model):
    """Has an __init__ of its own, which marks the instance."""

    title = models.CharField(max_length=100)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shout = self.title.upper() if "title" in self.__dict__ else None


class LegacyTag(models.Model):
    """An unmanaged model over the table of Tag."""

    name = models.CharField(max_length=50)

    class Meta:
        managed = False
        db_table = "testapp_tag"


class AllFields(models.Model):
    """Every field type that Django has on every database, and a twin of each that may be null."""

    big_integer = models.BigIntegerField(default=0)
    binary = models.BinaryField(default=b"")
    boolean = models.BooleanField(default=False)
    char = models.CharField(max_length=200, default="")
    date = models.DateField(default="2000-01-01")
    datetime = models.DateTimeField(default=timezone.now)
    decimal = models.DecimalField(max_digits=20, decimal_places=6, default=0)
    duration = models.DurationField(default=timedelta)
    email = models.EmailField(default="")
    file = models.FileField(upload_to="files", default="")
    file_path = models.FilePathField(path="/", default="")
    float = models.FloatField(default=0.0)
    integer = models.IntegerField(default=0)
    ip_address = models.GenericIPAddressField(default="127.0.0.1")
    json = models.JSONField(default=dict)
    positive_big_integer = models.PositiveBigIntegerField(default=0)
    positive_integer = models.PositiveIntegerField(default=0)
    positive_small_integer = models.PositiveSmallIntegerField(default=0)
    slug = models.SlugField(default="")
    small_integer = models.SmallIntegerField(default=0)
    text = models.TextField(default="")
    time = models.TimeField(default="00:00")
    url = models.URLField(default="")
    uuid = models.UUIDField(default=uuid4)
    generated = models.GeneratedField(
        expression=models.F("small_integer") * 2, output_field=models.IntegerField(), db_persist=True
    )

    null_big_integer = models.BigIntegerField(null=True)
    null_binary = models.BinaryField(null=True)
    null_boolean = models.BooleanField(null=True)
    null_char = models.CharField(max_length=200, null=True)
    null_date = models.DateField(null=True)
    null_datetime = models.DateTimeField(null=True)
    null_decimal = models.DecimalField(max_digits=20, decimal_places=6, null=True)
    null_duration = models.DurationField(null=True)
    null_email = models.EmailField(null=True)
    null_file = models.FileField(upload_to="files", null=True)
    null_file_path = models.FilePathField(path="/", null=True)
    null_float = models.FloatField(null=True)
    null_integer = models.IntegerField(null=True)
    null_ip_address = models.GenericIPAddressField(null=True)
    null_json = models.JSONField(null=True)
    null_positive_big_integer = models.PositiveBigIntegerField(null=True)
    null_positive_integer = models.PositiveIntegerField(null=True)
    null_positive_small_integer = models.PositiveSmallIntegerField(null=True)
    null_slug = models.SlugField(null=True)
    null_small_integer = models.SmallIntegerField(null=True)
    null_text = models.TextField(null=True)
    null_time = models.TimeField(null=True)
    null_url = models.URLField(null=True)
    null_uuid = models.UUIDField(null=True)


class Part(models.Model):
    """Has a column of each type that is compared, all of which may be NULL, and relations of each kind."""

    class Kind(models.TextChoices):
        SMALL = "a"
        LARGE = "A"

    kind = models.CharField(max_length=10, choices=Kind, null=True, blank=True, db_column="Kind of part")
    label = models.TextField(null=True, blank=True)
    weight = models.DecimalField(max_digits=8, decimal_places=3, null=True, blank=True)
    size = models.FloatField(null=True, blank=True, db_column="SIZE")
    amount = models.SmallIntegerField(null=True, blank=True, db_index=True)
    stock = models.PositiveIntegerField(null=True, blank=True)
    made_on = models.DateField(null=True, blank=True)
    made_at = models.DateTimeField(null=True, blank=True)
    opens = models.TimeField(null=True, blank=True)
    lasts = models.DurationField(null=True, blank=True)
    code = models.UUIDField(null=True, blank=True)
    is_new = models.BooleanField(null=True, blank=True)
    notes = models.JSONField(null=True, blank=True)
    whole = models.ForeignKey("self", models.CASCADE, null=True, blank=True, related_name="parts")
    spare = models.OneToOneField("self", models.SET_NULL, null=True, blank=True, related_name="spare_of")
    book = models.ForeignKey(Book, models.SET_NULL, null=True, blank=True, related_name="parts")
    fits = models.ManyToManyField(Book, through="PartFit", related_name="fitting", blank=True)

    objects: ClassVar[LiveManager[Part]] = LiveManager()


class PartFit(models.Model):
    """Stands between parts and books, at most once for each pair."""

    part = models.ForeignKey(Part, models.CASCADE)
    book = models.ForeignKey(Book, models.CASCADE)
    grade = models.IntegerField(default=0)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=("part", "book"), name="one_fit")
        ]
