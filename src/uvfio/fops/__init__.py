"""File operations: one class per kind of open file and ABI. They decode, call the core, encode, and give
conditions the number that their ABI gives them; they have no rule of their own."""
