"""Prompts to states: what they are read as, the vocabulary of one's own, the encoder that is trained with the model."""
