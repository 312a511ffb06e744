"""The hot loops: for each a torch reference, a numba kernel and a Triton kernel."""
