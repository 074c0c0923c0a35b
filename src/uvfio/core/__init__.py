"""The framework: state and rules, without a door to the outside and without any ABI's numbers."""
