"""The one way in which pages are made: profiles, comparisons, load tests and searches are lists of blocks.

A page is one file that needs nothing else, no font, picture or script from elsewhere, so that it opens offline, on a
telephone and in MLflow's view of artifacts. A short script of its own sorts tables; without it nothing is missing.
There is no template engine and no plotting library, so a board makes pages, too.
"""
