import sys

import B
from design import C

print("A:", B.says(), C.says(), *sys.argv[1:])
