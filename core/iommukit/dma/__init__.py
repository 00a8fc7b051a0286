"""The DMA API over a domain."""
