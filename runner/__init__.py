"""Sluice: run data pipelines on an elastic fleet and change anything about it without losing a task."""
