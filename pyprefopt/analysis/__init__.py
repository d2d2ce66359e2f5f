"""Figures from tidy frames; the only room that knows matplotlib (`pip install 'pyprefopt[analysis]'`)."""
