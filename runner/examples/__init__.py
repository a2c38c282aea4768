"""Runnable pipelines, each folder a bundle."""
