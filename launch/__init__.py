"""Starting jobs on machines: how a command becomes processes on this host or a job on a cluster.

This package decides where and how often a command runs, never what it computes: it composes the same configuration
as the command itself and hands the command line on unchanged.
"""
