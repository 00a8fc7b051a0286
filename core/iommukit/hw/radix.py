"""Page tables as drivers write them: one engine for every radix format."""
