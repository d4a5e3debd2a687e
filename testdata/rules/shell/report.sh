#!/bin/sh
# Prints the table made at build time; its first argument is the table's place in the tree.
cd "$(dirname "$0")/.." && echo "$TITLE" && cat "${1:-shell/table.txt}"
