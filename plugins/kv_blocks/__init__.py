"""Block management: one pool of KV pages, or a part for prompts and a part for growth."""
