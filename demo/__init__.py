"""The bundled tiny models, the synthetic world they write about, and the recipe that makes them."""
