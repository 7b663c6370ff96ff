"""Meters: each names its source and its scope, and what a machine cannot measure is None with a reason."""
