"""What it takes to store a large corpus."""
