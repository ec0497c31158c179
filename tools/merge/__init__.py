"""The command that merges models."""
