"""Finding molecules by their templates."""
