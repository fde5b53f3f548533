"""One page of HTML about a training that opens by itself: plain structs in, text out."""

HTML_START = "<!DOCTYPE html>\n"
"""How the page begins."""
