"""What people look at: tables, comparisons, pictures and the HTML page."""
