"""Judging: figures that say how good a model is, and what is needed to believe or to repeat them.

`statistics`, `distances`, `manifold` and `intervals` know features only, `gathering` makes them of pictures,
`reference` and `samples` know what to compare with, and `judging` makes all figures of two sets. `reconstruction`
judges a tokenizer, `generation` a whole model, `rejection` chooses among its pictures, `card` says how. Only samples
and a cache of references are written to files.
"""
