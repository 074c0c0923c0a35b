"""The ABIs as data: numbers, structs, flags, with exactly the names of the C headers.

Nothing here behaves: no module does more than pack, unpack and check sizes.
"""
