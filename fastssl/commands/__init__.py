"""The commands of the command line: each parses its options, calls the library and prints.

A command takes the words after its name and returns the exit code.
"""
