"""What VAR is compared with: other ways to paint a picture, on the same tokens, blocks, trainer and options.

Each is a small subclass of `VAR` and a sampler; `orders` tells which belong together.
"""
