"""What is read off the tables: statistics, terminal tables, figures."""
