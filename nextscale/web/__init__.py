"""The browser studio: what `nextscale web` shows.

gradio is imported by `studio` and `serving` alone, so that nothing else in nextscale needs it.
"""
