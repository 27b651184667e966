"""Trains through the stages and scores each one. Imports evalsuite and decon."""
