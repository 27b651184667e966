"""Keeps what we measure out of the training data. Imports evalsuite only."""
