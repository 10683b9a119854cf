"""Prompt-lookup speculation: what followed the same few tokens before is guessed to follow them again."""
