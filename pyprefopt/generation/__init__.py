"""Text from a policy, or from a policy and its reference together."""
