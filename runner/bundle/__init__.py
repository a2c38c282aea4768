"""Versions of pipeline code: build, validate, publish, fetch, load."""
