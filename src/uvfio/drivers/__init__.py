"""VFIO bus drivers. They do not know which door or which ABI calls them."""
