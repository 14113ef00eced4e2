"""Addresses of the app."""

from __future__ import annotations

from django.urls import path

from example_project.airports import views

app_name = "airports"
urlpatterns = [
    path("", views.table, name="table"),
    path("airports/<str:icao>/", views.edit, name="edit"),
    path("stats/", views.stats, name="stats"),
    path("invalidate/", views.invalidate_table, name="invalidate"),
    path("cache/", views.switch_cache, name="switch"),
]
