"""The hardware model: what the machine does with instructions and requests, by public facts of z/Architecture.

Nothing here knows how the driver writes its tables; ``layout`` names the bits for both.
"""
