"""Operations on whole micrographs: borders, bad pixels, sampling, noise, bands, grey scale."""
