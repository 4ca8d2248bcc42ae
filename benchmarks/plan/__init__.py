"""Budgets, predictions and speed of plans."""
