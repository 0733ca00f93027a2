"""Constraints: patterns and schemas that a text is held to, as automata over a model's tokens."""
