"""Drafts: trees of guesses, how they grow, and how long they should be."""
