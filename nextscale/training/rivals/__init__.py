"""Stages for the rivals: what differs from the training of VAR, and nothing else."""
