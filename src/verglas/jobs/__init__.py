"""Job folders: provenance, resume, locks."""
