"""Gold beads: found in single images."""
