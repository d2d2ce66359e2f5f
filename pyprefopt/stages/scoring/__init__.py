"""Given responses under given models: their tokens, and a score of each."""
