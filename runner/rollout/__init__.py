"""Replacing what a fleet runs: plan (pure), steps, gate, driver."""
