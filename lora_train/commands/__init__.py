"""The commands of `lora-train`: thin words around `App`."""
