"""What the benchmarks that run several processes share: a tiny Django project, its databases, workers and systems."""
