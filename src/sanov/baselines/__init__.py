"""What the systems are compared with, where no kept library has it."""
