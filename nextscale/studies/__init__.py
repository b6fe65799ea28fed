"""Studies: tables of cells that are trained and judged alike, so that what differs between them can be compared."""
