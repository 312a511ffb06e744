"""Readers and writers: files of this and other programs, to and from the records."""
