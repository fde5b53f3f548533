"""The captioners that run in the worker: taggers (onnxruntime) and image-to-text models (transformers)."""
