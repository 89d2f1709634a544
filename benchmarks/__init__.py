"""Measurements: ``python -m benchmarks.cpu`` and ``python -m benchmarks.demo``."""
