"""Metrics: pure functions with thin torchmetrics classes around them, and the statistics of comparisons.

Nothing is imported here, so that :mod:`lit_mmpg.metrics.statistics` stays free of torch.
"""
