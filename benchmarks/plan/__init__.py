"""What the planner promises: bytes and time known beforehand, and no more bytes than it was given."""
