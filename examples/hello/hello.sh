#!/bin/sh
# Prints the page that PAGE names.
set -eu
cat "$PAGE"
