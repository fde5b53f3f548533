"""One page of HTML about a training that opens by itself: plain structs in, text out."""
