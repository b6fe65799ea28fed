"""What the models run on: devices and number formats, processes that work together, operations counted."""
