"""The engine: plain objects that turn requests into tokens. It knows no plugin, no text and no framework."""
