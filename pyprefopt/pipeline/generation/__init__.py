"""What policies generate: samples as a file, pairs of them, and rounds of both."""
