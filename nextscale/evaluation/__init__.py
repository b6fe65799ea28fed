"""Judging: figures that say how good a model is, and what is needed to believe or to repeat them.

`statistics` knows numbers only; `reconstruction` puts a tokenizer, pictures and a feature network together. Nothing
here trains, prints or writes files.
"""
