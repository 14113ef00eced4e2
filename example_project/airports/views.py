"""The pages: the table, the edit form, the statistics, and two buttons."""

from __future__ import annotations

from django.contrib import messages
from django.core.paginator import EmptyPage, Paginator
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from example_project.airports import reads
from example_project.airports.badge import OFF_COOKIE, is_cache_off, measured
from example_project.airports.forms import AirportForm
from example_project.airports.models import Airport, Country
from example_project.airports.statistics import collect_statistics
from example_project.airports.table import MAX_SEARCH_CHARS, PAGE_SIZE, TableRequest, TableRequestError
from live_cache import invalidate

__all__ = ["edit", "invalidate_table", "stats", "switch_cache", "table"]


@require_safe
def table(request: HttpRequest) -> HttpResponse:
    """Show one page of airports."""
    try:
        wanted = TableRequest.parse(request.GET)
    except TableRequestError as error:
        return _problem(request, str(error), status=error.status)
    with measured(request) as badge:
        # Everything is read here and nothing in the template, so that the badge tells of all of it.
        countries = list(reads.countries())
        country = next((country for country in countries if country.code == wanted.country), None)
        if wanted.country and country is None:
            return _problem(request, f"There is no country “{wanted.country}” in this table.", status=404)
        paginator = Paginator(reads.airports(wanted), PAGE_SIZE)
        try:
            page = paginator.page(wanted.page)
        except EmptyPage:
            count = paginator.num_pages
            return _problem(request, f"There is no page {wanted.page} here; the last one is {count}.", status=404)
        airports = list(page.object_list)
    context = {
        "wanted": wanted,
        "columns": wanted.columns(),
        "countries": countries,
        "country": country,
        "airports": airports,
        "page": page,
        "page_links": _page_links(wanted, paginator),
        "previous": wanted.at_page(wanted.page - 1) if page.has_previous() else None,
        "next": wanted.at_page(wanted.page + 1) if page.has_next() else None,
        "badge": badge,
        "max_search_chars": MAX_SEARCH_CHARS,
    }
    return render(request, "airports/table.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
def edit(request: HttpRequest, icao: str) -> HttpResponse:
    """Show the form of one airport, or save it and go back to the table page that it was opened from."""
    back = request.GET.get("back", "")
    with measured(request) as badge:
        try:
            airport = reads.airport_by_icao(icao)
        except Airport.DoesNotExist:
            return _problem(request, f"There is no airport “{icao}”.", status=404)
    title = str(airport)
    form = AirportForm(request.POST or None, instance=airport, label_suffix="")
    if request.method == "POST" and form.is_valid():
        form.save()
        messages.success(request, f"Saved {airport}." if form.changed_data else "Nothing was changed.")
        return redirect(_table_url(back))
    context = {"airport": airport, "form": form, "title": title, "back_url": _table_url(back), "badge": badge}
    # 422 for a form that has to be corrected: the request was understood, its content cannot be saved.
    return render(request, "airports/edit.html", context, status=422 if form.errors else 200)


@require_safe
def stats(request: HttpRequest) -> HttpResponse:
    """Show tiers, counters and clocks."""
    explanation = reads.airports(TableRequest())[:PAGE_SIZE].live_explain()
    context = {"statistics": collect_statistics(), "explanation": explanation, "is_off": is_cache_off(request)}
    return render(request, "airports/stats.html", context)


@require_POST
def invalidate_table(request: HttpRequest) -> HttpResponse:
    """Mark everything stale that shows the table named in the request."""
    model = {"airport": Airport, "country": Country}.get(request.POST.get("table", ""))
    if model is None:
        return _problem(request, "Name a table: airport or country.", status=400)
    invalidate(model)
    messages.success(request, f"Invalidated the table of {model._meta.verbose_name_plural}: the next read is a miss.")
    return redirect(_url_after_button(request))


@require_POST
def switch_cache(request: HttpRequest) -> HttpResponse:
    """Turn the cache off for this visit, or on again."""
    response = redirect(_url_after_button(request))
    if request.POST.get("state") == "off":
        response.set_cookie(OFF_COOKIE, "off", httponly=True, samesite="Lax")
    else:
        response.delete_cookie(OFF_COOKIE, samesite="Lax")
    return response


def _page_links(wanted: TableRequest, paginator: Paginator[Airport]) -> list[dict[str, object]]:
    numbers = paginator.get_elided_page_range(wanted.page, on_each_side=2, on_ends=1)
    return [
        {
            "label": number,
            "query": wanted.at_page(number) if isinstance(number, int) else None,
            "is_current": number == wanted.page,
        }
        for number in numbers
    ]


def _url_after_button(request: HttpRequest) -> str:
    return reverse("airports:stats") if "stats" in request.POST else _table_url(request.POST.get("back", ""))


def _table_url(query: str) -> str:
    # Only ever a query string of the table page, parsed and made again: never somebody else's address.
    try:
        query = TableRequest.parse(QueryDict(query).dict()).query
    except TableRequestError:
        query = ""
    url = reverse("airports:table")
    return f"{url}?{query}" if query else url


def _problem(request: HttpRequest, message: str, *, status: int) -> HttpResponse:
    return render(request, "airports/problem.html", {"message": message, "status": status}, status=status)
