"""Figures of speed and accuracy, each beside a peer or a floor."""
