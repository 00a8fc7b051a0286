"""The scenario language and its executor on the model."""
