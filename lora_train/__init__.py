"""Train Tools: make a LoRA from a folder of pictures, in a Stable Diffusion WebUI or from the command line."""

__version__ = "0.1.0"
