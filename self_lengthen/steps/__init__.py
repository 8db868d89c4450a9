"""The numbered steps of a macro-iteration, one module each."""
