"""Prefix caching: requests that begin alike share the KV pages of their beginning."""
