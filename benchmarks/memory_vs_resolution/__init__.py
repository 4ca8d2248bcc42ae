"""How the bytes and the time of a step grow with the image."""
