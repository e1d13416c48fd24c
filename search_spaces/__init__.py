"""What an architecture is, which architectures a search may choose from, and what they cost. Standard library only."""
