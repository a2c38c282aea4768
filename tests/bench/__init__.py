"""How fast it is: `make bench` runs cases on real engines and real processes and prints one JSON line for each."""
