#!/bin/sh
# Starts the program that lies beside this script, wherever the tree is mounted.
exec "$(dirname "$0")/A" "$@"
