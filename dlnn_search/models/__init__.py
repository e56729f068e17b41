"""Keras networks, built from configs."""
