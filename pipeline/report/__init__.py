"""Tables, figures and records for the reports."""
