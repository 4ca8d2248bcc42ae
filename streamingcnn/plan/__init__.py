"""Plans: stored nodes -> stages and needed boxes -> what they cost -> a choice -> what a user sees of it."""
