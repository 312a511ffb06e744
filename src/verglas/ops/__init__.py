"""Mathematics on tensors: no files, no records."""
