"""Benchmarks: alternatives timed against each other in one run, after a check that they compute the same.

These are experiments on the project, not part of the product: they are run from a checkout
(``python -m lit_mmpg.profiling.benchmarks.NAME``), a wheel does not hold them, and nothing outside imports them.
"""
