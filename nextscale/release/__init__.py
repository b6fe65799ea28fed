"""The public release's checkpoints: their files, and what is in them to our models and back.

`nextscale.official` is the door for users.
"""
