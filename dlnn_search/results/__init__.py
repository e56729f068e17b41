"""What a search found: reads the database, returns frozen values."""
