"""What is measured: one formula a function, on arrays. `README.md` here defines every quantity."""
