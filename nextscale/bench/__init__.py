"""Times beside what the arithmetic alone would take at this machine's own rates: sampling, and both stages' steps."""
