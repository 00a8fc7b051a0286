"""Results compared and shown: matrix, diff, boot."""
