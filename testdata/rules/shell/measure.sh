#!/bin/sh
# One line for each file: its size and name. It finds its data beside itself, as any tool with `data` does.
unit=$(cat "$(dirname "$0")/unit.txt")
for file; do
    echo "$(wc -c <"$file" | tr -d ' ') $unit ${file##*/}"
done
