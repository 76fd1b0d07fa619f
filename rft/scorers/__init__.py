"""Scorers, one file each: `(prompt, candidate, **args) -> Score`. They never import one another."""
