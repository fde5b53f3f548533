"""Models, the LoRA network and the training loop: torch, diffusers and transformers; runs in the worker only."""
