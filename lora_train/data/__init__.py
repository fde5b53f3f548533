"""Pictures, captions and buckets: Pillow and numpy, no torch."""
