"""The CPU path in C++: compiled on the machine it runs on, at first use, and loaded with ctypes."""
