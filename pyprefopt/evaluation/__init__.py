"""Numbers computed from what models give responses; no model is run here."""
