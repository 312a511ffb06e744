"""Arrays and records in, pictures out."""
