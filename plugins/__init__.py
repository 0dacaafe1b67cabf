"""Behaviour that can be replaced or switched off. Plugins never import each other."""
