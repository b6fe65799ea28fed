"""Stage 2, from scale to next scale: the stage, its learner, where its tokens come from, the health of every scale."""
