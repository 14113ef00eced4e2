"""Addresses of the example project."""

from __future__ import annotations

from django.contrib.staticfiles.views import serve
from django.urls import include, path

urlpatterns = [
    path("", include("example_project.airports.urls")),
    # The one CSS file, also where DEBUG is off and no web server stands in front.
    path("static/<path:path>", serve, {"insecure": True}),
]
