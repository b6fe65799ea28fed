"""Stage 1, images to tokens and back: the stage, care of the codebook, the adversary, the health of every scale."""
