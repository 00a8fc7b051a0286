"""The vendor plugin."""
