"""URLs of the test project: none of its own; tests override ROOT_URLCONF where they need some."""

from __future__ import annotations

from django.urls import URLPattern, URLResolver

__all__ = ["urlpatterns"]

urlpatterns: list[URLPattern | URLResolver] = []
