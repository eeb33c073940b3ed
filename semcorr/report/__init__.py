"""Results for readers: tables, comparisons, pictures and the HTML page."""
