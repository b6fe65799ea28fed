"""Judging: figures that say how good a model is, and what is needed to believe or to repeat them.

`statistics`, `distances`, `manifold` and `intervals` know features only, `gathering` makes them of pictures, `reference`
and `samples` know what to compare with. `reconstruction` judges a tokenizer, `generation` and `rejection` a whole model;
`card` says how. Nothing here trains or prints; only files of samples and the references' cache are written.
"""
