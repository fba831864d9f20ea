"""Readers and schemas, one per source."""
