"""Reasoning in what a model writes, told from its answer by the marks of Qwen 3, DeepSeek R1 and ERNIE."""
