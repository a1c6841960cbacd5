"""What is told in a terminal: progress, tables, one line of error, what is installed, every setting."""
