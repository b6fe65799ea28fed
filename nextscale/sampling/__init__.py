"""Painting a picture: the loop over scales, guidance, editing, the engine that runs it, and what memory it takes.

Imports nothing, so that guidance schedules need no torch.
"""
