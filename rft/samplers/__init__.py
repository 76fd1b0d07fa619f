"""Where candidates come from: one file per sampler, named as `use:` names it."""
