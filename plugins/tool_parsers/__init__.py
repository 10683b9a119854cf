"""Calls of tools in what a model writes: tagged JSON (Hermes, Qwen, ERNIE), bare JSON (Llama 3) and Python calls."""
