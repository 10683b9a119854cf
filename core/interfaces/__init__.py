"""The interfaces a plugin implements and the plain data that crosses them. Importing this imports no framework."""
