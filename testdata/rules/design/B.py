import ctypes
import os

_library = ctypes.CDLL(os.path.join(os.path.dirname(os.path.abspath(__file__)), "libD.so"))
_library.D_says.restype = ctypes.c_char_p


def says():
    return "B > " + _library.D_says().decode()
