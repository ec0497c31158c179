"""Merging of models, tensor by tensor, in memory that does not grow with the number of models."""
