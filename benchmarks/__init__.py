"""Measurements, each of which prints one ratio table; run by hand, never a timed test."""
