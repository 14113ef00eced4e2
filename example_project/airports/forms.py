"""The edit form of an airport."""

from __future__ import annotations

from typing import Any, ClassVar

from django import forms

from example_project.airports.models import Airport

__all__ = ["AirportForm"]


class AirportForm(forms.ModelForm):  # type: ignore[type-arg]  # not subscriptable at run time
    """Changes what people may know better than the source; saves only the columns that were changed."""

    class Meta:
        model = Airport
        fields: ClassVar[list[str]] = ["name", "city", "subdivision", "country", "iata", "elevation_ft"]
        widgets: ClassVar[dict[str, Any]] = {
            "iata": forms.TextInput(attrs={"autocapitalize": "characters", "spellcheck": "false"}),
            "elevation_ft": forms.NumberInput(attrs={"step": "0.1"}),
        }

    def clean_iata(self) -> str | None:
        """Return the code, or None: an empty string would count as a code that only one airport may have."""
        return self.cleaned_data["iata"] or None

    def save(self, commit: bool = True) -> Airport:
        """Save the changed columns, so that another tab's change of another column stays."""
        airport: Airport = self.instance
        airport.has_iata = airport.iata is not None
        if commit and self.changed_data:
            airport.save(update_fields=[*self.changed_data, "has_iata", "updated_at"])
        return airport
