"""Data with known truth, made by another route than the code it judges."""
