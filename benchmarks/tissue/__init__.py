"""How well tissue masks agree with the truth of painted slides."""
