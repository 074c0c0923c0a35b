"""The ``uvfio`` command."""
