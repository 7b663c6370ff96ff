"""Measurements of speed. Nothing outside this package imports it."""
