"""Smaller nets from a trained one: narrowing, low rank, distillation, static int8, and the search over them."""
