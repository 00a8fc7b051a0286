"""The hardware model: what a unit does with registers, commands and requests, read from the specification.

Nothing here knows how the driver writes its tables; ``layout`` names the bits for both.
"""
