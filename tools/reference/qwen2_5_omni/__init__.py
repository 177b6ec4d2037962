"""Golden files for Qwen2.5-Omni, made with the transformers implementation."""
