"""Selectors, one file each: `(groups, **args) -> choices`. They never import one another."""
