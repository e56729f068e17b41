"""Pictures of analog clocks: rendered here, or the course's own."""
