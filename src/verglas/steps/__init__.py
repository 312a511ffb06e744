"""One module a step: its parameters, its items, what it makes of each, its summary."""
