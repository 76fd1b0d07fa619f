"""Stages, one file each, run as processes of their own. They never import one another."""
