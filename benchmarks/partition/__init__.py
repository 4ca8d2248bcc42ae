"""One image over several processes: time and bytes of a rank, against one process."""
