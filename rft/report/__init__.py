"""The report of a finished run: what the arms did, compared, with pictures and examples."""
