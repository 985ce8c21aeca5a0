"""Grids of trainings, and the tables, pictures and pages made of their results."""
