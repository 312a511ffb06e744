"""The science: arrays and records in, results out. No paths, no engine."""
