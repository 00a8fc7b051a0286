"""What runs and predictions come to: matrix, diff, boot.  Data first; pages of styled text and HTML for people.

Nothing here prints; ``iommukit.cli`` does.
"""
