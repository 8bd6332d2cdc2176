"""Tables, figures, records and provenance for the reports."""
