"""Backups of studies, and their way from one database to another."""
