"""Model folders: what a folder holds, and what is wrong with it, before anything is read but names and headers."""
