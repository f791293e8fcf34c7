"""A client of Assay that shares no code with it: it knows the outside contract, and stock libraries."""
