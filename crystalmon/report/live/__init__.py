"""The report of a run that is still training: in the browser, or in the terminal."""
