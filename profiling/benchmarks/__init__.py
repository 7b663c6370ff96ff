"""Benchmarks: alternatives timed against each other in one run, after a check that they compute the same."""
