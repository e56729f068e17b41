"""What people see: live view, tables, pictures. Reads; changes nothing."""
