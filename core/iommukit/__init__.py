"""An executable model of how Linux decides and enforces DMA protection."""

__version__ = "0.1.0"
