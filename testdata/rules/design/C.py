import ctypes
import os

_library = ctypes.CDLL(os.path.join(os.path.dirname(os.path.abspath(__file__)), "libE.so"))
_library.E_says.restype = ctypes.c_char_p


def says():
    return "C > " + _library.E_says().decode()
