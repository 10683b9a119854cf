"""Every kind's plain default: eager steps, private pages, whole prompts first come first served."""
