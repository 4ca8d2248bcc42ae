"""Time and bytes of one training step in three ways."""
