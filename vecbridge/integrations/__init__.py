"""Adapters to frameworks: each renames nouns and nothing more, and is imported by its own name."""
