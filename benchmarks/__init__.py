"""Speed of the library beside a plain reference that does the same work the obvious way."""
