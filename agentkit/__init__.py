"""Agents over local models."""
