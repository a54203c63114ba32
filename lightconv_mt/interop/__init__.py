"""Formats of other toolkits."""
