"""What `pyprefopt evaluate` can do, a file each."""
