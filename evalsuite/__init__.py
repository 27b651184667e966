"""What we measure: suites, scoring and the texts that must not leak. Imports no other room."""
