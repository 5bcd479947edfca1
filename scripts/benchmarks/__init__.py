"""The jobs of scripts/bench, each in a module of its own; `measure` is what they share."""
