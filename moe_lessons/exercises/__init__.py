"""What is checked: exercises that say of an answer what differs. `exercise` is the base; each has a file."""
