"""What the data path is to reach, as ratios of the peer's time to ours: (work, set, peer) -> at least."""

AT_LEAST = {
    ("preparation", "hh", "trl"): 40,
    ("preparation", "long", "trl"): 40,
    ("preparation", "hh", "glued"): 1.5,
    ("preparation", "long", "glued"): 1.1,
    ("tokenize", None, None): 20,
    ("first", None, None): 10,
    ("mask", None, None): 5,
    ("packing", None, None): 300,
}
