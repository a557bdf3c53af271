"""Sharing on the Hub: what is pushed and pulled, its cards, and models that load without popen."""
