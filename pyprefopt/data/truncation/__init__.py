"""The first part of each response."""
