"""The tables of the forum: threads on boards, their posts, and who has read what."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

__all__ = ["Board", "Member", "Post", "ReadMark", "Tag", "Thread"]


class Member(models.Model):
    """Somebody who writes and reads."""

    objects: ClassVar[models.Manager[Member]] = models.Manager()

    name = models.CharField(max_length=40, unique=True)
    signature = models.CharField(max_length=120, default="")
    post_count = models.PositiveIntegerField(default=0)
    is_banned = models.BooleanField(default=False)
    joined = models.DateTimeField()
    last_seen = models.DateTimeField()

    def __str__(self) -> str:
        return self.name


class Board(models.Model):
    """Holds threads."""

    objects: ClassVar[models.Manager[Board]] = models.Manager()

    title = models.CharField(max_length=60)
    position = models.PositiveSmallIntegerField()
    thread_count = models.PositiveIntegerField(default=0)

    def __str__(self) -> str:
        return self.title


class Tag(models.Model):
    """Given to many threads, and a thread has several."""

    objects: ClassVar[models.Manager[Tag]] = models.Manager()

    name = models.CharField(max_length=30)

    def __str__(self) -> str:
        return self.name


class Thread(models.Model):
    """Shown with its last post, which orders it on its board."""

    objects: ClassVar[models.Manager[Thread]] = models.Manager()

    board = models.ForeignKey(Board, on_delete=models.CASCADE)
    author = models.ForeignKey(Member, on_delete=models.CASCADE, related_name="threads")
    title = models.CharField(max_length=100)
    tags = models.ManyToManyField(Tag)
    is_pinned = models.BooleanField(default=False)
    is_closed = models.BooleanField(default=False)
    reply_count = models.PositiveIntegerField(default=0)
    view_count = models.PositiveIntegerField(default=0)
    created = models.DateTimeField()
    last_post_at = models.DateTimeField(db_index=True)
    last_poster = models.ForeignKey(Member, null=True, on_delete=models.SET_NULL, related_name="+")

    def __str__(self) -> str:
        return self.title


class Post(models.Model):
    """One post of a thread."""

    objects: ClassVar[models.Manager[Post]] = models.Manager()

    thread = models.ForeignKey(Thread, on_delete=models.CASCADE, related_name="posts")
    author = models.ForeignKey(Member, on_delete=models.CASCADE, related_name="posts")
    body = models.TextField()
    created = models.DateTimeField()
    edited = models.DateTimeField(null=True)
    likes = models.PositiveIntegerField(default=0)
    is_hidden = models.BooleanField(default=False)

    def __str__(self) -> str:
        return f"post {self.pk}"


class ReadMark(models.Model):
    """Up to when a member has read a thread; a thread with a later post is unread."""

    objects: ClassVar[models.Manager[ReadMark]] = models.Manager()

    member = models.ForeignKey(Member, on_delete=models.CASCADE)
    thread = models.ForeignKey(Thread, on_delete=models.CASCADE, related_name="marks")
    read_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["member", "thread"], name="one_mark")]

    def __str__(self) -> str:
        return f"mark {self.pk}"
