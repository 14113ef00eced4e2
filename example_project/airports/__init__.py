"""The one app of the example project: countries, airports, and the demonstration."""
