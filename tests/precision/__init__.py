"""Precision may not cost soundness: random queries and writes, and the traps that were found, against the database."""
