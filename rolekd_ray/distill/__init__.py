"""Distillation: losses as plain functions, and which role's view feeds which network."""
