"""Numbers of models on given responses: what they score, and how sure that is."""
