"""What hardware models are made of."""
