"""The DMA API over a domain: set-up, addresses, flush queues."""
