"""Training Net with torch: data, recipes, the loop, run folders."""
