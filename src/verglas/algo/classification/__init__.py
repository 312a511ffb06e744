"""What differs among particles of one kind: principal components of their differences, and classes within these."""
