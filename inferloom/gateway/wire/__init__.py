"""What travels over HTTP, as structs: one file per API."""
