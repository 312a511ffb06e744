"""Commands that are no steps, one module each."""
