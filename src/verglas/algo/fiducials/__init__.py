"""Gold beads and what else does not belong in an image: found, masked, erased."""
