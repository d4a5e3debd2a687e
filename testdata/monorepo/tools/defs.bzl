"""What the libraries of this workspace have in common."""

def c_module(name, deps = [], srcs = []):
    """A library of all headers and sources in its folder; `srcs` are those that depend on the machine."""
    native.cc_library(
        name = name,
        srcs = native.glob(["*.c"], exclude = ["cpu_*.c"]) + srcs,
        hdrs = native.glob(["*.h"]),
        copts = ["-Wall", "-Werror"],
        deps = deps,
        visibility = ["//visibility:public"],
    )
