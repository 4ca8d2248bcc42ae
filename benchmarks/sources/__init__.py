"""What reading pixels from files costs."""
