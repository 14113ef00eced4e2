"""A forum: boards ordered by the last post, threads in pages of posts, unread counts; replies and views change most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar, Final

from django.db import transaction
from django.db.models import F, Sum

from benchmarks.project.models import Board, Member, Post, ReadMark, Tag, Thread
from benchmarks.project.systems import System
from benchmarks.workloads.base import Cached, Read, Workload, as_rows

__all__ = ["Forum"]

BOARDS: Final = 15
MEMBERS: Final = 800
THREADS: Final = 1500
POSTS: Final = 9000
MARKS: Final = 4000
TAGS: Final = 40
WORDS: Final = ("how", "why", "error", "new", "best", "old", "slow", "help", "beta", "crash", "colour", "price")
THREADS_PER_PAGE: Final = 20
POSTS_PER_PAGE: Final = 10


class Forum(Workload):
    """Readers look at boards and hot threads, members reply, and moderators tidy up."""

    name: ClassVar[str] = "forum"

    def __init__(self, system: System, seed: int) -> None:
        super().__init__(system, seed)
        self.popular = self.popularity()
        self.boards: list[int] = []
        self.members: list[int] = []
        self.threads: list[int] = []
        self.tags: list[int] = []

    def fill(self) -> None:
        """See Workload.fill()."""
        chance = self.chance
        Board.objects.bulk_create([Board(title=f"Board {number}", position=number) for number in range(BOARDS)])
        Tag.objects.bulk_create([Tag(name=f"tag-{number}") for number in range(TAGS)])
        Member.objects.bulk_create(
            [
                Member(name=f"Member {number}", signature="Ceterum censeo. " * 3, joined=self.now, last_seen=self.now)
                for number in range(MEMBERS)
            ]
        )
        self.boards, self.tags, self.members = self.pks(Board), self.pks(Tag), self.pks(Member)
        Thread.objects.bulk_create([self._new_thread(chance.randrange(500_000)) for _ in range(THREADS)])
        self.threads = self.pks(Thread)
        tagged = Thread.tags.through
        pairs = [(thread, tag) for thread in self.threads for tag in chance.sample(self.tags, 2)]
        tagged._default_manager.bulk_create([tagged(thread_id=thread, tag_id=tag) for thread, tag in pairs])
        Post.objects.bulk_create(
            [self._new_post(self.popular.of(self.threads), chance.randrange(500_000)) for _ in range(POSTS)],
            batch_size=500,
        )
        marks = {(self.popular.of(self.members), self.popular.of(self.threads)): None for _ in range(MARKS)}
        ReadMark.objects.bulk_create(
            [
                ReadMark(member_id=member, thread_id=thread, read_at=self._ago(chance.randrange(300_000)))
                for member, thread in marks
            ],
            batch_size=500,
        )
        # A new thread is the most popular one for a while.
        with self.system.truth():
            self.threads = list(Thread.objects.order_by("-last_post_at", "-pk").values_list("pk", flat=True))

    def _ago(self, minutes: int) -> Any:
        return self.now - timedelta(minutes=minutes)

    def _new_thread(self, minutes: int) -> Thread:
        chance = self.chance
        return Thread(
            board_id=self.popular.of(self.boards),
            author_id=self.popular.of(self.members),
            title=f"{chance.choice(WORDS)} {chance.choice(WORDS)} {chance.randrange(10**5)}",
            is_pinned=chance.random() < 0.01,
            created=self._ago(minutes),
            last_post_at=self._ago(minutes),
        )

    def _new_post(self, thread: int, minutes: int) -> Post:
        member = self.popular.of(self.members)
        return Post(thread_id=thread, author_id=member, body="Quousque tandem? " * 8, created=self._ago(minutes))

    # -- reads ------------------------------------------------------------------------------------------------------

    def reads(self) -> Sequence[tuple[int, Callable[[], Read]]]:
        """See Workload.reads()."""
        return (
            (20, self._posts),
            (14, self._thread),
            (7, self._post_count),
            (16, self._board),
            (6, self._thread_count),
            (4, self._index),
            (5, self._latest),
            (6, self._tag),
            (6, self._profile),
            (4, self._posts_of),
            (5, self._unread_count),
            (3, self._unread),
            (2, self._search),
            (2, self._top),
        )

    def _page(self, rate: float, last: int) -> int:
        return min(int(self.chance.expovariate(rate)), last)

    def _posts(self) -> Read:
        thread, number = self.popular.of(self.threads), self._page(1.5, 3)
        return Read("posts", (thread, number), partial(_ask_posts, thread, number))

    def _thread(self) -> Read:
        thread = self.popular.of(self.threads)
        return Read("thread", (thread,), partial(_ask_thread, thread))

    def _post_count(self) -> Read:
        thread = self.popular.of(self.threads)
        return Read("post count", (thread,), partial(_ask_post_count, thread))

    def _board(self) -> Read:
        board, number = self.popular.of(self.boards), self._page(1.0, 5)
        return Read("board", (board, number), partial(_ask_board, board, number))

    def _thread_count(self) -> Read:
        board = self.popular.of(self.boards)
        return Read("thread count", (board,), partial(_ask_thread_count, board))

    def _index(self) -> Read:
        return Read("index", (), _ask_index)

    def _latest(self) -> Read:
        return Read("latest", (), _ask_latest)

    def _tag(self) -> Read:
        tag = self.popular.of(self.tags)
        return Read("tag", (tag,), partial(_ask_tag, tag))

    def _profile(self) -> Read:
        member = self.popular.of(self.members)
        return Read("profile", (member,), partial(_ask_profile, member))

    def _posts_of(self) -> Read:
        member = self.popular.of(self.members)
        return Read("posts of", (member,), partial(_ask_posts_of, member))

    def _unread_count(self) -> Read:
        member = self.popular.of(self.members)
        return Read("unread count", (member,), partial(_ask_unread_count, member))

    def _unread(self) -> Read:
        member = self.popular.of(self.members)
        return Read("unread", (member,), partial(_ask_unread, member))

    def _search(self) -> Read:
        word = self.popular.of(WORDS)
        return Read("search", (word,), partial(_ask_search, word))

    def _top(self) -> Read:
        return Read("top", (), _ask_top)

    # -- writes -----------------------------------------------------------------------------------------------------

    def writes(self) -> Sequence[tuple[int, Callable[[], None]]]:
        """See Workload.writes()."""
        return (
            (30, self._view),
            (20, self._reply),
            (12, self._mark_read),
            (12, self._like),
            (9, self._seen),
            (5, self._start_thread),
            (4, self._edit_post),
            (2, self._pin_or_close),
            (1, self._move_thread),
            (2, self._delete_post),
            (1, self._delete_thread),
            (1, self._hide_posts),
            (1, self._mark_all_read),
        )

    def _view(self) -> None:
        self.system.update(Thread.objects.filter(pk=self.popular.of(self.threads)), view_count=F("view_count") + 1)

    def _reply(self) -> None:
        """Add a post, and what is counted of it, in one transaction."""
        thread = self.popular.of(self.threads)
        with transaction.atomic():
            post: Any = self._new_post(thread, 0)
            post.save()
            self.system.update(
                Thread.objects.filter(pk=thread),
                reply_count=F("reply_count") + 1,
                last_post_at=self.now,
                last_poster=post.author_id,
            )
            self.system.update(Member.objects.filter(pk=post.author_id), post_count=F("post_count") + 1)

    def _mark_read(self) -> None:
        member, thread = self.popular.of(self.members), self.popular.of(self.threads)
        with self.system.truth():
            mark = ReadMark.objects.filter(member=member, thread=thread).first()
        mark = mark or ReadMark(member_id=member, thread_id=thread)
        mark.read_at = self.now
        mark.save()

    def _like(self) -> None:
        with self.system.truth():
            post = Post.objects.filter(thread=self.popular.of(self.threads)).order_by("-created", "-pk").first()
        if post is not None:
            self.system.update(Post.objects.filter(pk=post.pk), likes=F("likes") + 1)

    def _seen(self) -> None:
        member = self.one(Member, self.popular.of(self.members))
        member.last_seen = self.now
        member.save(update_fields=["last_seen"])

    def _start_thread(self) -> None:
        with transaction.atomic():
            thread: Any = self._new_thread(0)
            thread.save()
            thread.tags.add(*self.chance.sample(self.tags, 2))
            self._new_post(thread.pk, 0).save()
            self.system.update(Board.objects.filter(pk=thread.board_id), thread_count=F("thread_count") + 1)
        self.threads.insert(self.chance.randrange(20), thread.pk)

    def _a_post(self) -> Any:
        with self.system.truth():
            return Post.objects.filter(thread=self.chance.choice(self.threads)).order_by("pk").first()

    def _edit_post(self) -> None:
        post = self._a_post()
        if post is not None:
            post.body, post.edited = f"Quousque tandem? {self.chance.random()}", self.now
            post.save()

    def _pin_or_close(self) -> None:
        thread = self.one(Thread, self.popular.of(self.threads))
        if self.chance.random() < 0.5:
            thread.is_pinned = not thread.is_pinned
        else:
            thread.is_closed = not thread.is_closed
        thread.save()

    def _move_thread(self) -> None:
        thread = self.one(Thread, self.chance.choice(self.threads))
        thread.board_id = self.chance.choice(self.boards)
        thread.save(update_fields=["board"])

    def _delete_post(self) -> None:
        post = self._a_post()
        if post is not None:
            post.delete()

    def _delete_thread(self) -> None:
        """Delete a thread with its posts, marks and tags."""
        self.one(Thread, self.threads.pop(self.chance.randrange(len(self.threads)))).delete()

    def _hide_posts(self) -> None:
        """Ban somebody, and hide all that he wrote."""
        member = self.one(Member, self.chance.choice(self.members))
        with transaction.atomic():
            member.is_banned = True
            member.save()
            self.system.update(Post.objects.filter(author=member), is_hidden=True)

    def _mark_all_read(self) -> None:
        self.system.update(ReadMark.objects.filter(member=self.popular.of(self.members)), read_at=self.now)


# -- the queries ------------------------------------------------------------------------------------------------------


def _ask_posts(thread: int, number: int, cached: Cached) -> Any:
    posts = Post.objects.filter(thread=thread, is_hidden=False).select_related("author").order_by("created", "pk")
    shown = posts.only("thread", "body", "created", "edited", "likes", "author__name", "author__signature")
    return as_rows(cached(shown)[number * POSTS_PER_PAGE : (number + 1) * POSTS_PER_PAGE], "author")


def _ask_thread(thread: int, cached: Cached) -> Any:
    return as_rows([cached(Thread.objects.select_related("board", "author")).get(pk=thread)], "board", "author")


def _ask_post_count(thread: int, cached: Cached) -> Any:
    return cached(Post.objects.filter(thread=thread, is_hidden=False)).count()


def _ask_board(board: int, number: int, cached: Cached) -> Any:
    threads = Thread.objects.filter(board=board).order_by("-is_pinned", "-last_post_at", "-pk")
    shown = threads.values_list("pk", "title", "is_pinned", "reply_count", "last_post_at", "last_poster__name")
    return list(cached(shown)[number * THREADS_PER_PAGE : (number + 1) * THREADS_PER_PAGE])


def _ask_thread_count(board: int, cached: Cached) -> Any:
    return cached(Thread.objects.filter(board=board)).count()


def _ask_index(cached: Cached) -> Any:
    grouped = Board.objects.order_by("position", "pk").values("pk", "title", "thread_count")
    return [tuple(row.items()) for row in cached(grouped.annotate(replies=Sum("thread__reply_count")))]


def _ask_latest(cached: Cached) -> Any:
    threads = Thread.objects.select_related("board").order_by("-last_post_at", "-pk")
    return as_rows(cached(threads)[:THREADS_PER_PAGE], "board")


def _ask_tag(tag: int, cached: Cached) -> Any:
    threads = Thread.objects.filter(tags=tag).only("title", "last_post_at").order_by("-last_post_at", "-pk")
    return as_rows(cached(threads)[:THREADS_PER_PAGE])


def _ask_profile(member: int, cached: Cached) -> Any:
    return as_rows([cached(Member.objects.all()).get(pk=member)])


def _ask_posts_of(member: int, cached: Cached) -> Any:
    posts = Post.objects.filter(author=member, is_hidden=False).order_by("-created", "-pk")
    return list(cached(posts.values_list("pk", "created", "thread__title"))[:POSTS_PER_PAGE])


def _ask_unread_count(member: int, cached: Cached) -> Any:
    return cached(Thread.objects.filter(marks__member=member, last_post_at__gt=F("marks__read_at"))).count()


def _ask_unread(member: int, cached: Cached) -> Any:
    threads = Thread.objects.filter(marks__member=member, last_post_at__gt=F("marks__read_at"))
    return list(cached(threads.order_by("-last_post_at", "-pk").values_list("pk", "title"))[:10])


def _ask_search(word: str, cached: Cached) -> Any:
    threads = Thread.objects.filter(title__icontains=word).order_by("-created", "-pk").values_list("pk", "title")
    return list(cached(threads)[:THREADS_PER_PAGE])


def _ask_top(cached: Cached) -> Any:
    members = Member.objects.filter(is_banned=False).order_by("-post_count", "pk")
    return list(cached(members.values_list("name", "post_count"))[:10])
