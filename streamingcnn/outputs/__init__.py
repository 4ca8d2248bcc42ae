"""Results in files: how they are kept while they are made, and the formats they end in."""
