"""The example project: the airports of the world behind django-live-cache."""
