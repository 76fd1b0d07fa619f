"""How many samples each prompt gets: one file per rule, named as `sample.allocate` names it."""
