"""Files and tables of rows: which there are, and what they hold, in parts of bounded size."""
