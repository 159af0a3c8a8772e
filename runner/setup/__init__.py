"""What has to be there before anything else can run: the Python environment and the container engine.

Standard library only: it runs on the system's bare python3, before anything is installed.
"""
