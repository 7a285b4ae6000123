"""What users hand in, read and checked: one file per format."""
